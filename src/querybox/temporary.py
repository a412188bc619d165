"""Temporary folders for files that are being written, which a process that is killed leaves behind.

They are removed by the next process that writes a file to the same folder.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

TEMPORARY = re.compile(r"\.querybox-(\d+)-([0-9a-f]{8})[0-9a-f]{8}\.tmp")
"""Name of a folder for temporary files, with the ids of the process that writes them and of its machine, and a random
number."""
ABANDONED = 24 * 60 * 60.0
"""Seconds without a change after which the temporary folder of a process of another machine is left over."""
CLOCK_ERROR = 2.0
"""Seconds by which the start of a process may be reported too late; Linux counts from a boot time in whole seconds."""
_written: set[str] = set()
"""Names of the temporary folders that this process writes to."""


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Context manager that yields a new folder beside `path`, from which files are moved there, and removes it.

    What killed processes left beside `path` is removed before.

    Args:
        path: The file or folder to write; the folder that it will be in is created if necessary.

    Raises:
        OSError: The folder cannot be created; the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers_once(path.parent.absolute())
    folder = path.parent / temporary_name(os.getpid())
    _written.add(folder.name)
    try:
        try:
            folder.mkdir()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        yield folder
    finally:
        # Windows cannot remove a file that is mapped, as one is by a model as long as an error about it is handled.
        shutil.rmtree(folder, ignore_errors=True)
        _written.discard(folder.name)


def temporary_name(process: int) -> str:
    """Return a new name for a temporary folder of a process of this machine."""
    return f".querybox-{process}-{machine_id()}{secrets.token_hex(4)}.tmp"


def leftovers(folder: Path, name: re.Pattern[str] = TEMPORARY) -> list[Path]:
    """Return the temporary folders in a folder that killed processes left.

    Args:
        folder: The folder.
        name: What their names match, with the ids of the process and of its machine as groups.
    """
    named = ((path, name.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(
        path
        for path, found in named
        if found
        and path.is_dir()
        and not path.is_symlink()
        and not may_be_written(path, int(found[1]), found[2])
    )


def remove_leftovers(folder: Path, name: re.Pattern[str] = TEMPORARY) -> None:
    """Remove what `leftovers` returns; other processes may do so at the same time."""
    for path in leftovers(folder, name):
        shutil.rmtree(path, ignore_errors=True)


@cache
def remove_leftovers_once(folder: Path) -> None:
    """Remove what `leftovers` returns, if it can be listed, unless this process has done so before."""
    with suppress(OSError):
        remove_leftovers(folder)


@cache
def machine_id() -> str:
    """Return 8 hexadecimal digits for this machine, or container: others have processes with the same ids."""
    namespace = ""
    with suppress(OSError):  # of Linux alone
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a text that is no path
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def may_be_written(path: Path, process: int, machine: str) -> bool:
    """Return whether a process may be writing into the temporary folder `path`.

    Args:
        path: The folder.
        process: The id of the process that made it. A process that started after the last change of `path` has only
            got the same id again.
        machine: The id of its machine.
    """
    try:
        if machine != machine_id():
            last = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
            return time.time() - last < ABANDONED
        if process == os.getpid():
            return path.name in _written
        changed = path.stat().st_mtime + CLOCK_ERROR
    except OSError:  # it is being removed
        return True
    return start_of(process) <= changed


def is_other_process(process: int) -> bool:
    """Return whether `process` is the id of a running process other than this one."""
    # In a container that was started again, this process may have the id of the one that was killed.
    return process != os.getpid() and start_of(process) < math.inf


def start_of(process: int) -> float:
    """Return when a process started, as seconds of Unix time; infinity if it has ended, minus infinity if unknown."""
    import psutil

    try:
        found = psutil.Process(process)
        # A killed process stays a zombie until its parent waits for it, in a container often for ever.
        return math.inf if found.status() == psutil.STATUS_ZOMBIE else float(found.create_time())
    except psutil.AccessDenied:
        return -math.inf
    except (psutil.NoSuchProcess, OverflowError):
        return math.inf
