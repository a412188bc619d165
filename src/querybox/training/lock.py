"""The lock of a run folder: only one process at a time trains in it."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from querybox.errors import ConfigError
from querybox.files import output_folder
from querybox.temporary import is_other_process

LOCK = ".lock"
"""Name of the lock file, which is used where the system cannot lock a folder."""
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL}
"""Error numbers of file systems that cannot lock a folder; EBADF is that of NFS."""

_locked_folders: set[int] = set()
"""Descriptors of the folders that this process has locked."""


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Create a folder if necessary and hold its lock; a folder that was created and is still empty is removed on exit.

    The system releases the lock of a folder when the process ends, for whatever reason. Where it cannot lock folders
    (Windows, some network file systems), a file with the host and the process takes its place, and that of a process
    that has ended is replaced.

    Raises:
        ConfigError: Another process holds the lock, or the folder cannot be created.
        DiskFullError: There is no space for the folder.
    """
    expected = "expected a new folder, or that of a run: set another 'output'"
    with output_folder(folder, name="run folder", cure=expected):
        descriptor = lock_folder(folder)
        try:
            with lock_file(folder / LOCK) if descriptor is None else nullcontext():
                yield
        finally:
            if descriptor is not None:
                unlock_folder(descriptor)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder and return its descriptor; None if the system or the file system cannot.

    Raises:
        ConfigError: Another process has locked it.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in UNSUPPORTED:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise in_use(folder) from None
        raise
    _locked_folders.add(descriptor)
    return descriptor


def unlock_folder(descriptor: int) -> None:
    """Release the lock of a folder."""
    _locked_folders.discard(descriptor)
    os.close(descriptor)


def forget_locks() -> None:
    """Close the inherited descriptors in a forked process, which would hold the locks after the end of its parent."""
    for descriptor in _locked_folders:
        os.close(descriptor)
    _locked_folders.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget_locks)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, with the host and the process in it.

    Raises:
        ConfigError: Another process holds it.
    """
    holder = json.dumps({"host": platform.node(), "process": os.getpid()})
    try:
        if has_ended(path):
            path.unlink(missing_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(holder)
    except FileExistsError:
        raise in_use(
            path.parent, f", or remove {path} if no training runs there: it names {read_holder(path)}"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def has_ended(path: Path) -> bool:
    """Return whether the process in a lock file is known to have ended: one of this host, and not running."""
    try:
        holder = json.loads(read_holder(path))
        if holder["host"] != platform.node():
            return False
        return not is_other_process(holder["process"])
    except (ValueError, TypeError, KeyError):
        return False


def read_holder(path: Path) -> str:
    """Return the content of a lock file; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def in_use(folder: Path, more: str = "") -> ConfigError:
    """Return the error for a folder in which another process trains."""
    return ConfigError(
        f"{folder}: another process is training in this run folder; expected no more than one: wait until it has "
        f"ended, or set another 'output'{more}"
    )
