"""Keep freed memory in the process during training, because every step allocates about the same amount again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
NEVER = -1
MIB = 2**20


@contextmanager
def retain_freed_memory() -> Iterator[None]:
    """Context manager in which malloc retains freed memory; on exit it is returned to the system.

    glibc returns large blocks to the system as soon as they are freed, and the system clears and maps the next one page
    by page, which takes up to a third of a training step on a CPU. With another C library this does nothing.
    """
    mallopt = libc_function("mallopt")
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, NEVER)
    mallopt(M_TOP_PAD, 64 * MIB)
    try:
        yield
    finally:
        # The values that glibc's dynamic adjustment reaches, which setting any of them turns off.
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_MMAP_THRESHOLD, 32 * MIB)
        mallopt(M_TRIM_THRESHOLD, 64 * MIB)
        mallopt(M_TOP_PAD, MIB // 8)
        release_freed_memory()


def release_freed_memory() -> None:
    """Return unused memory to the system: images of different sizes leave gaps that are never reused."""
    if trim := libc_function("malloc_trim"):
        trim(0)


def libc_function(name: str) -> Callable[..., int] | None:
    """Return a function of the C library; None if it has no function of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
