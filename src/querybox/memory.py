"""Recognise errors that mean a lack of memory, which every library raises in its own way."""

from __future__ import annotations

import errno

PATTERNS = (
    "out of memory",  # CUDA and MPS
    "can't allocate memory",  # PyTorch on CPUs
    "cannot allocate memory",  # the system
    "bad allocation",  # C++
    "bad_alloc",
    "failed to allocate memory",  # ONNX Runtime
)
"""Parts of messages, in lower case."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that there was not enough memory, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(pattern in message for pattern in PATTERNS)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or its type if it has none."""
    return str(error).partition("\n")[0] or type(error).__name__
