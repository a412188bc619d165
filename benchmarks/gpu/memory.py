"""Peak memory on a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.models import Run
from benchmarks.measure import Absent, Work

MIB = 2**20


def with_peak_memory(run: Run, build: Callable[[], Work]) -> Callable[[], float]:
    """Return what does the work and answers with its peak in MiB: of what it allocates, and of what it has kept.

    The memory of the other sides, which are built meanwhile and keep gradients and AdamW's state, does not count.

    Raises:
        Absent: The device does not count its memory.
    """
    if run.device.type != "cuda":
        raise Absent("needs a CUDA device")
    gc.collect()
    before = torch.cuda.memory_allocated(run.device)
    work: Callable[[], Any] = build()
    kept = torch.cuda.memory_allocated(run.device) - before

    def peak() -> float:
        nonlocal kept
        torch.cuda.reset_peak_memory_stats(run.device)
        before = torch.cuda.memory_allocated(run.device)
        work()
        result = kept + torch.cuda.max_memory_allocated(run.device) - before
        kept += torch.cuda.memory_allocated(run.device) - before
        return result / MIB

    return peak
