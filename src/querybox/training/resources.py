"""What a run can use of the machine that it trains on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self

from querybox.inference.engine import default_device
from querybox.machine import available_cpus
from querybox.memory import available_memory, reports_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The device that a run uses, and the memory and cores of the computer."""

    device: str
    """PyTorch's name of the type of the device: `cpu`, `cuda`, `mps` ..."""
    memory: int
    """Available main memory in bytes."""
    cores: int
    """CPU cores that this process may use."""
    processes: int = 1
    """Number of training processes."""
    reports_memory: bool = True
    """Whether the memory of a training step can be measured."""

    @classmethod
    def here(cls) -> Self:
        """Return those of this machine."""
        device = default_device()
        return cls(
            device=device.type,
            memory=available_memory(),
            cores=available_cpus(),
            processes=int(os.environ.get("WORLD_SIZE", "1")),  # set by torchrun and accelerate launch
            reports_memory=reports_memory(device),
        )
