"""Files by path or URL: on this disk, or in a storage that fsspec connects to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from querybox.data.web import linked_files
from querybox.errors import (
    ConfigError,
    DataError,
    ImageError,
    MissingExtraError,
    QueryboxError,
    StorageError,
    requires_extra,
)
from querybox.files import atomic, require_regular
from querybox.memory import first_line
from querybox.urls import CURE, has_misplaced_password, is_url, public_name

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

WEB = ("http", "https")
"""Schemes of web servers, which have pages with links in place of folders, and to which nothing is written."""
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", *WEB)
"""Schemes of URLs that are opened. fsspec has others, among them those that name further files and hosts."""
PAGE = "text/html"
"""Content type of the pages of web servers."""
MISSING = (404, 410)
"""Status codes of web servers that have no such file; other codes mean that it cannot be read now."""
MAX_CONTENT = 1 << 28
"""Maximum number of bytes of an image file, which is in memory as a whole."""


def is_web(place: str) -> bool:
    """Return whether a place is a URL of a web server."""
    return place.partition("://")[0] in WEB


def suffix(place: str) -> str:
    """Return the file name extension of a path or URL in lower case; names in storages may contain ``?`` and ``#``."""
    return os.path.splitext(urlsplit(place).path if is_web(place) else place)[1].lower()  # noqa: PTH122


def stem(url: str) -> str:
    """Return the last name in a URL, without extension, number and pattern."""
    for part in reversed(url.partition("://")[2].partition("?")[0].split("/")):
        name = re.sub(r"[*?\[{].*", "", PurePosixPath(part).stem).strip("-_.")
        if re.search(r"[^\W\d_]", name):
            return name
    return "shards"


def connect(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the storage of a URL, and the path in it. No connection is opened yet.

    Raises:
        ConfigError: It is malformed, or the scheme is not one of `SCHEMES`.
        MissingExtraError: The package for it is not installed.
    """
    scheme, name = url.partition("://")[0], public_name(url)
    if scheme not in SCHEMES:
        raise ConfigError(
            f"{name}: got the scheme '{scheme}'; expected a path, or one of {', '.join(SCHEMES)}"
        )
    try:
        urlsplit(url)
    except ValueError as error:
        reason = "" if "@" in url else f" ({error})"  # which may repeat the password
        raise ConfigError(f"{name}: is not a URL{reason}; check it") from None
    if scheme in WEB and has_misplaced_password(url):
        raise ConfigError(f"{scheme}://...: the URL is malformed; {CURE}")
    with requires_extra("shards", name):
        from fsspec.core import url_to_fs
    try:
        storage, path = url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{name}: {error}") from None
    return storage, path


@contextmanager
def reaching(place: str) -> Iterator[None]:
    """Context manager around what a storage does, each of which raises errors of its own kind.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: The storage cannot be reached, or refuses.
    """
    try:
        yield
    except QueryboxError:
        raise
    except Exception as error:  # of botocore, aiohttp, gcsfs ...
        reason: BaseException = error
        if isinstance(error, FileNotFoundError):
            # fsspec raises it for whatever a web server answers, and if there is none.
            reason = (is_web(place) and error.__cause__) or error
            if reason is error or getattr(reason, "status", None) in MISSING:
                raise
        raise StorageError(
            f"{public_name(place)}: {first_line(reason)} ({type(reason).__name__}); check the URL, the credentials and "
            "the connection, and repeat the command"
        ) from error


@contextmanager
def as_image_errors(place: str) -> Iterator[None]:
    """Convert the errors of a file that is missing or may not be read to `ImageError`."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"{public_name(place)}: no such file", "missing_image") from None
    except PermissionError as error:
        raise ImageError(f"{place}: cannot be read ({error.strerror}); check its permissions") from None


class StoredFile:
    """A file that is read in parts, and that remembers an error of its storage.

    Libraries turn such an error into one of the file, as if the file were damaged.

    Attributes:
        failure: The error of the storage; None if there was none.
        limit: Maximum number of bytes that are read at a time.
    """

    def __init__(self, place: str, file: Any) -> None:
        """Wrap an open binary file, of the disk or of fsspec, at a path or URL."""
        self.place = place
        self.file = file
        self.failure: OSError | None = None
        self.limit = MAX_CONTENT

    def read(self, size: int = -1) -> bytes:
        """Read this number of bytes, or to the end of the file.

        Raises:
            ValueError: `size` is more than `limit`, as a damaged header may state.
            OSError: The storage cannot be reached, or refuses.
        """
        if size > self.limit:
            raise ValueError(f"it states {size:,} bytes, of which at most {self.limit:,} are read")
        with self.remembering():
            parts = [self.file.read(size)]
            # A stream of the web gives what has arrived.
            while parts[-1] and (size := size - len(parts[-1])) > 0:
                parts.append(self.file.read(size))
        return b"".join(parts)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position.

        Raises:
            OSError: The file is on a web server that sends only whole files.
        """
        with self.remembering():
            return self.file.seek(offset, whence)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Context manager in which an error of the storage is remembered."""
        try:
            with reaching(self.place) if is_url(self.place) else nullcontext():
                yield
        except OSError as error:
            self.failure = error
            raise

    def tell(self) -> int:
        """Return the position."""
        return self.file.tell()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self.file.closed

    @property
    def size(self) -> int:
        """Number of bytes of the file."""
        position = self.tell()
        end = self.seek(0, os.SEEK_END)
        self.seek(position)
        return end


@contextmanager
def opened(place: str, *, ahead: bool = True) -> Iterator[StoredFile]:
    """Open a file for reading.

    Args:
        place: Its path or URL.
        ahead: Whether a storage sends more than is asked for, of a file that is read from beginning to end.

    Raises:
        ImageError: There is no such file, it is not a regular one, or may not be read.
        OSError: The storage cannot be reached, or refuses, also later, when readers take it for damage of the file.
    """
    with as_image_errors(place):
        if is_url(place):
            storage, path = connect(place)
            with reaching(place):
                file = storage.open(path, "rb", **({} if ahead else {"cache_type": "none"}))
        else:
            require_regular(Path(place), ImageError)
            file = Path(place).open("rb")  # noqa: SIM115 - closed below
    with file:
        stored = StoredFile(place, file)
        try:
            yield stored
        except DataError:
            if stored.failure is not None:
                raise stored.failure from None
            raise


def read(place: str) -> bytes:
    """Return the content of an image file.

    Raises:
        ImageError: As for `opened`, or it is larger than `MAX_CONTENT`.
        OSError: As for `opened`.
    """
    with opened(place) as file:
        content = file.read(MAX_CONTENT)
        if file.read(1):
            raise ImageError(f"{public_name(place)}: {too_large()}", "too_large_image")
    return content


def read_range(place: str, start: int, size: int) -> bytes:
    """Return `size` bytes of a file from the byte `start` on, and read no others.

    Raises:
        ImageError: There is no such file, it may not be read, or ends before.
        StorageError: The storage cannot be reached, or refuses.
    """
    with as_image_errors(place):
        if is_url(place):
            storage, path = connect(place)
            with reaching(place):
                content: bytes = storage.cat_file(path, start=start, end=start + size)
        else:
            require_regular(Path(place), ImageError)
            with open(place, "rb") as file:  # noqa: PTH123 - half the time of Path.open
                file.seek(start)
                content = file.read(size)
    if len(content) != size:
        raise ImageError(
            f"{public_name(place)}: got {len(content):,} of {size:,} bytes from byte {start:,} on; expected a storage "
            "that reads parts of files, and an unchanged file: restore it"
        )
    return content


def version(place: str) -> str:
    """Return a text that differs if a file has been replaced: its size, and when it was changed.

    Raises:
        ImageError: There is no such file, or it may not be read.
        StorageError: The storage cannot be reached, or refuses.
    """
    with as_image_errors(place):
        if not is_url(place):
            status = Path(place).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        storage, path = connect(place)
        with reaching(place):
            if not is_web(place):
                return str(storage.ukey(path))
            info = storage.info(path)  # fsspec takes the files of web servers to be always the same
            return f"{info.get('size')} {info.get('ETag')}"


def too_large() -> str:
    """Return the message that a file has too many bytes."""
    return f"is larger than {MAX_CONTENT:,} bytes, the limit of an image file; make it smaller"


def write(place: str, content: bytes) -> None:
    """Write a file, which appears as a whole or not at all.

    Raises:
        OSError: It cannot be written; the storage has no such bucket, cannot be reached, or refuses.
    """
    if is_url(place):
        storage, path = connect(place)
        try:
            with reaching(place):
                storage.pipe_file(path, content)
        except FileNotFoundError as error:
            raise StorageError(
                f"{place}: cannot be written ({first_line(error)}); create the bucket"
            ) from error
        return
    with atomic(Path(place), size=len(content)) as temporary:
        temporary.write_bytes(content)


def join(folder: str, name: str) -> str:
    """Return the place of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else str(Path(folder) / name)


def names(folder: str) -> set[str]:
    """Return the names of the files in a folder; none if there is no such folder."""
    try:
        if not is_url(folder):
            return set(os.listdir(folder))  # noqa: PTH208 - of many files
        storage, path = connect(folder)
        storage.invalidate_cache()  # of earlier listings
        with reaching(folder):
            found = storage.ls(path, detail=False)
        return {each.rstrip("/").rpartition("/")[2] for each in found}
    except FileNotFoundError:
        return set()


def web_folder(url: str) -> str | None:
    """Return the URL of a folder of a web server, which ends with the ``/`` that its links are relative to.

    One without it is recognised by the page that the server has there, if its name has no extension.

    Returns:
        None if the URL is that of a file.

    Raises:
        StorageError: The server cannot be reached, or refuses.
    """
    parts = urlsplit(url)
    if parts.path.endswith("/"):
        return url
    if suffix(url):
        return None
    storage, path = connect(url)
    try:
        with reaching(url):
            is_page = storage.info(path).get("mimetype") == PAGE
    except FileNotFoundError:
        return None  # which is told when it is read
    return parts._replace(path=f"{parts.path}/").geturl() if is_page else None


def list_urls(source: str) -> list[str] | None:
    """Return the files and folders in the folder or pattern that a URL names; None if it names a file.

    Raises:
        ConfigError: As for `connect`.
        DataError: There is no such file or folder.
        StorageError: The storage cannot be reached, or refuses.
    """
    storage, path = connect(source)
    if is_web(source):
        folder = web_folder(source)
        return None if folder is None else linked_files(folder, read(folder))
    missing = DataError(f"{public_name(source)}: no such file or folder; check the URL")
    try:
        with reaching(source):
            if storage.isdir(path):
                found = storage.ls(path, detail=False)
            elif storage.exists(path):
                return None
            elif any(character in path for character in "*?["):
                found = storage.glob(path)
            else:
                raise missing
    except FileNotFoundError:
        raise missing from None
    return [storage.unstrip_protocol(each) for each in found]
