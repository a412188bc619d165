"""Images in a tar, such as a shard of WebDataset, read one after the other; nothing is written to the disk."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

from querybox.bulk.pictures import Picture
from querybox.bulk.storage import MAX_CONTENT, StoredFile, too_large
from querybox.data.image import SUFFIXES
from querybox.errors import DataError

MAX_HEADER = 1 << 20
"""Maximum number of bytes of an extended header, such as of a long name."""


def read_tar(place: str, file: StoredFile) -> Iterator[Picture]:
    """Yield the images in a tar without compression, named ``PLACE#MEMBER``.

    Members with other file name extensions, such as the annotations of a sample of WebDataset, are passed over. Names
    of members are never used as paths. Links and sparse members are pictures with an error.

    Args:
        place: Path of the tar, or URL without credentials.
        file: The tar.

    Raises:
        DataError: It is not a tar, is damaged or cut off, or has no images. What precedes the damage has been yielded.
    """
    found = False
    try:
        file.limit = MAX_HEADER
        with tarfile.TarFile(fileobj=file, mode="r") as tar:  # type: ignore[arg-type]
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would grow with the number of members
                if not member.isdir() and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    found = True
                    file.limit = MAX_CONTENT
                    yield read_member(f"{place}#{member.name}", tar, member)
                    file.limit = MAX_HEADER
            # Python takes a damaged header for the end, which is a block of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{place}: the tar is damaged or cut off at byte {tar.offset:,}; restore it")
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{place}: cannot be read as a tar without compression ({error}); restore it"
        ) from None
    if not found:
        raise DataError(f"{place}: the tar has no image; expected members such as 000000.jpg")


def read_member(name: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Picture:
    """Return the image in a member of a tar.

    Raises:
        TarError: The tar ends before the image.
    """
    if not member.isreg() or member.issparse():
        return Picture.broken(name, f"{name}: is a link, a device or sparse; expected a regular member")
    if member.size > MAX_CONTENT:
        return Picture.broken(name, f"{name}: {too_large()}")
    content = tar.extractfile(member)
    assert content is not None
    return Picture.of(name, content.read())
