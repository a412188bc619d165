"""The environment of a run: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from querybox.files import write_text
from querybox.machine import package_version
from querybox.runfile import ENVIRONMENT
from querybox.text import to_json
from querybox.training.git import commit

PACKAGES = (
    "querybox",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pillow",
)


def describe_environment(processes: int) -> dict[str, Any]:
    """Return versions, platform, devices, threads, and the commit of the working directory."""
    return {
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "platform": describe_platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": commit(Path.cwd()),
    }


def describe_platform() -> str:
    """Return operating system, release, machine and C library; `platform.platform` runs the program ``uname``."""
    names = [platform.system(), platform.release(), platform.machine()]
    # Elsewhere it searches Python's executable, which that of the Microsoft Store cannot be opened for.
    libc = "".join(platform.libc_ver()) if platform.system() == "Linux" else ""
    return "-".join([*names, "with", libc] if libc else names)


def write_environment(folder: Path, processes: int) -> None:
    """Write the environment of a run to ``environment.json`` in its folder."""
    write_text(folder / ENVIRONMENT, to_json(describe_environment(processes), indent=2) + "\n")
