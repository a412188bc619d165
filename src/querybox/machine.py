"""The machine that Python runs on: the CPUs that it may use, the packages that are installed, and its processes."""

from __future__ import annotations

import multiprocessing
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from querybox.errors import ConfigError


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def package_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def refuse_import_by_child(where: str) -> None:
    """Refuse to work for a script that a child process imports, as all do that are not forked.

    Raises:
        ConfigError: The script would begin again in the child.
    """
    # How multiprocessing itself finds it out; there is no public way.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            f"{where}: was called again because the processes that load images import this script; put what it does "
            "into a function that is called under `if __name__ == '__main__':`"
        )
