"""The machine that Python runs on: the CPUs that it may use, and the packages that are installed."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
