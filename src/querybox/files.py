"""Files that a crash leaves as they were or as they shall be, never half written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from querybox.errors import DiskFullError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says where there is no room: on the disk, in a quota, or in a limit on the size of files."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8.

    Raises:
        DiskFullError: There is no room for it.
    """
    content = text.encode()
    with atomic(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder that replaces `path`, durably, when the block succeeds.

    Args:
        path: The file; as long as it is not replaced, it stays as it is.
        size: Bytes that the new one takes, if known; for the message.

    Raises:
        DiskFullError: There is no room for it.
    """
    try:
        with replacement(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in FULL:
            raise
        room = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
        needed = "" if size is None else f"{size / 1e6:.1f} MB are needed, "
        raise DiskFullError(
            f"{path}: cannot be written ({os.strerror(error.errno)}): {needed}{room}; an older file of this name is "
            "intact. Make room there, then do it again; a training goes on with --resume"
        ) from error


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Do what `atomic` does, whatever the error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file to the disk, and forget what the memory holds of it: who reads it next reads the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def leftovers(folder: Path) -> list[Path]:
    """Return the files in a folder that a killed program was just writing with `atomic`."""
    return sorted(folder.glob(".*.tmp"))
