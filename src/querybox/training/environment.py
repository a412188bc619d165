"""The environment of a run: versions, hardware, commit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from querybox.files import write_text

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
        "packages": {name: installed(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "commit": commit(),
    }


def write_environment(path: Path, processes: int) -> None:
    """Write the environment to the JSON file `path`."""
    write_text(path, json.dumps(describe_environment(processes), indent=2) + "\n")


def installed(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the git commit of the working directory, with a suffix if files differ from it; None outside of git."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    return answer.stdout.strip() or None
