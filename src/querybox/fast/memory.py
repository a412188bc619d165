"""Memory that tensors give back stays with the process: the next step asks for as much again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
NEVER = -1
MIB = 2**20


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have malloc keep what is freed while the context lasts; then the system gets it back.

    glibc returns a large block at once when it is freed, and the system clears and maps the next one page by page,
    which is up to a third of a training step's time on a CPU. Where the C library is another, nothing happens.
    """
    mallopt = of_the_c_library("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)
    mallopt(M_TOP_PAD, 64 * MIB)
    try:
        yield
    finally:
        # What glibc's own adaptation comes to once large blocks have been freed; setting anything turns it off.
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        mallopt(M_TOP_PAD, MIB // 8)
        release_freed_memory()


def release_freed_memory() -> None:
    """Return to the system what has been kept and is not in use: images of many sizes leave gaps that nothing fits."""
    if trim := of_the_c_library("malloc_trim"):
        trim(0)


def of_the_c_library(name: str) -> Callable[..., int] | None:
    """Return one of glibc's functions; None where the C library has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
