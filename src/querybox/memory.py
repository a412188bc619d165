"""Memory of this process and machine, and errors that mean a lack of it, which every library raises in its own way."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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


STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CGROUP = Path("/sys/fs/cgroup")
"""The control group of a container, which may have a limit below the memory of the machine."""


def available_memory() -> int:
    """Return the main memory that this process can still use in bytes, within the limit of its container."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not (limit.is_file() and used.is_file()):
        return available
    most = limit.read_text(encoding="utf-8").strip()
    if most == "max":
        return available
    lines = (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines()
    caches = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return min(available, max(0, int(most) - int(used.read_text(encoding="utf-8")) + caches))


def reports_memory(device: torch.device) -> bool:
    """Return whether the peak of the memory of this process can be measured."""
    return device.type == "cuda" or os.access(RESET, os.W_OK)


def reset_peak(device: torch.device) -> int:
    """Reset the peak of the memory in use, and return the bytes in use now."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if reports_memory(device):
        RESET.write_text("5", encoding="utf-8")  # resets VmHWM
    return process_memory("VmRSS")


def peak_memory(device: torch.device, before: int) -> int | None:
    """Return the peak of the memory in use minus `before`, in bytes; None if the system does not report it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) - before
    return process_memory("VmHWM") - before if reports_memory(device) else None


def process_memory(field: str) -> int:
    """Return VmRSS (memory in use) or VmHWM (its peak) of this process in bytes; 0 on systems other than Linux."""
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
