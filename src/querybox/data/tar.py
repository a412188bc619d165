"""The members of a tar, such as a shard of WebDataset, one after the other; nothing is written to the disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from querybox.data.storage import MAX_CONTENT, StoredFile
from querybox.errors import DataError
from querybox.files import restore

MAX_HEADER = 1 << 20
"""Maximum number of bytes of an extended header, such as of a long name."""
COMPRESSED = {
    "gzip": b"\x1f\x8b",
    "bzip2": b"BZh",
    "xz": b"\xfd7zXZ\0",
    "zstd": b"(\xb5/\xfd",
}
"""The first bytes of compressed files."""
COMPRESSED_BYTES = max(map(len, COMPRESSED.values()))
MAX_PADDING = 1 << 16
"""Number of bytes after its end in which something else is looked for; tools pad tars to multiples of 10 KiB."""


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    """The name as it is written in the tar; never to be used as a path."""
    start: int
    """The byte of the tar at which its content begins."""
    size: int
    """Number of bytes of its content, as the tar states it."""
    is_regular: bool
    """Whether it is neither a link nor a device, and not sparse."""


def read_members(place: str, file: StoredFile) -> Iterator[Member]:
    """Yield the members of a tar without compression, without folders.

    The content of a member may be read from `file` before the next one is asked for; see `read_member`.

    Args:
        place: Path or URL of the tar.
        file: The tar.

    Raises:
        DataError: It is not a tar, or is damaged or cut off. What precedes the damage has been yielded.
    """
    offset = 0
    try:
        file.limit = MAX_HEADER
        with tarfile.TarFile(fileobj=file, mode="r") as tar:  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would grow with the number of members
                offset = tar.offset
                if not member.isdir():
                    is_regular = member.isreg() and not member.issparse()
                    yield Member(member.name, member.offset_data, member.size, is_regular)
            check_end(place, file, tar.offset)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        if offset == 0:
            require_uncompressed(place, file)
        raise DataError(
            f"{place}: cannot be read as a tar from byte {offset:,} on ({error}); {restore(place)}"
        ) from None


def require_uncompressed(place: str, file: StoredFile) -> None:
    """Check the beginning of a file that is not a tar.

    Raises:
        DataError: It is compressed.
    """
    file.seek(0)
    start = file.read(COMPRESSED_BYTES)
    if kind := next((kind for kind, signature in COMPRESSED.items() if start.startswith(signature)), None):
        raise DataError(
            f"{place}: is compressed by {kind}; expected a tar without compression: decompress it"
        )


def check_end(place: str, file: StoredFile, end: int) -> None:
    """Check that a tar ends where Python found its end.

    Python takes a damaged header for the end, which is a block of zeros, and does not look at what follows.

    Raises:
        DataError: It does not.
    """
    file.seek(end)
    last = file.read(MAX_PADDING)
    if last[: tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{place}: the tar is damaged or cut off at byte {end:,}; {restore(place)}")
    if last.strip(b"\0"):
        raise DataError(
            f"{place}: the tar ends at byte {end:,}, but something follows, such as another tar; write one tar"
        )


def read_member(place: str, file: StoredFile, member: Member) -> bytes:
    """Return the content of a member.

    Raises:
        DataError: The tar ends before.
    """
    limit, file.limit = file.limit, MAX_CONTENT
    file.seek(member.start)
    content = file.read(member.size)
    file.limit = limit
    if len(content) < member.size:
        raise DataError(f"{place}: the tar is damaged or cut off within {member.name}; {restore(place)}")
    return content
