"""What the speed of an engine depends on: the processor and the versions of packages."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from querybox.inference.engine import default_device
from querybox.machine import available_cpus, package_version

PACKAGES = ("querybox", "torch", "onnxruntime", "openvino")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine with its software."""

    processor: str
    """Name of the processor, or of its architecture if the name is unknown."""
    cores: int
    """Number of CPUs that this process may use."""
    device: str
    """Default device of PyTorch, with the name of a GPU."""
    packages: dict[str, str | None]
    """Versions of `PACKAGES`; None if one is not installed."""

    @classmethod
    def here(cls) -> Self:
        """Describe this machine."""
        return cls(
            processor=processor(),
            cores=available_cpus(),
            device=device(),
            packages={name: package_version(name) for name in PACKAGES},
        )


def device() -> str:
    """Return the default device of PyTorch; that of a GPU has its name."""
    place = default_device()
    return f"{place} ({torch.cuda.get_device_name(place)})" if place.type == "cuda" else str(place)


def processor() -> str:
    """Return the name of the processor; `platform.processor` runs a program to find it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
