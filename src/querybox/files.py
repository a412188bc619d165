"""Atomic writing of files: after a crash a file is either the old or the new one, never a partial one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from querybox.errors import DiskFullError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers for lack of space: on the disk, in a quota, or by a limit on the file size."""


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        DiskFullError: There is no space for it.
    """
    content = text.encode()
    with atomic(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic(path: Path, *, size: int | None = None) -> Iterator[Path]:
    """Context manager that yields a temporary path in the same folder, which durably replaces `path` on success.

    Args:
        path: The file; it is unchanged until it is replaced.
        size: Size of the new file in bytes if known, for the message.

    Raises:
        DiskFullError: There is no space for it.
    """
    try:
        with replacement(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
        needed = "" if size is None else f"{size / 1e6:.1f} MB are needed, "
        raise DiskFullError(
            f"{path}: cannot be written ({os.strerror(error.errno)}): {needed}{free}; an existing file of this name is "
            "unchanged. Free some space and try again; continue training with --resume"
        ) from error


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """Implement `atomic`, without translating errors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        flush(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk; does nothing on Windows, which cannot open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Write a file to the disk and drop it from the page cache, so that the next read verifies the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # not on macOS and Windows
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder that were left by a process killed in `atomic`."""
    return sorted(folder.glob(".*.tmp"))
