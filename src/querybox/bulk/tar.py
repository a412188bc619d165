"""Images in a tar, such as a shard of WebDataset, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from querybox.bulk.pictures import Picture
from querybox.data.image import SUFFIXES
from querybox.data.storage import MAX_CONTENT, StoredFile, too_large
from querybox.data.tar import Member, read_member, read_members
from querybox.errors import DataError


def read_tar(place: str, file: StoredFile) -> Iterator[Picture]:
    """Yield the images in a tar without compression, named ``PLACE#MEMBER``.

    Members with other file name extensions, such as the annotations of a sample of WebDataset, are skipped. Links
    and sparse members are pictures with an error.

    Args:
        place: Path of the tar, or URL without credentials.
        file: The tar.

    Raises:
        DataError: It is not a tar, is damaged or cut off, or has no images. What precedes the damage has been yielded.
    """
    found = False
    for member in read_members(place, file):
        if PurePosixPath(member.name).suffix.lower() in SUFFIXES:
            found = True
            yield read_picture(place, file, member)
    if not found:
        raise DataError(f"{place}: the tar has no image; expected members such as 000000.jpg")


def read_picture(place: str, file: StoredFile, member: Member) -> Picture:
    """Return the image in a member of a tar.

    Raises:
        DataError: The tar ends before the image.
    """
    name = f"{place}#{member.name}"
    if not member.is_regular:
        return Picture.broken(name, f"{name}: is a link, a device or sparse; expected a regular member")
    if member.size > MAX_CONTENT:
        return Picture.broken(name, f"{name}: {too_large()}")
    return Picture.of(name, read_member(place, file, member))
