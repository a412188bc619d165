"""Images in the rows of Parquet files that are read where they are, on this disk or in a storage.

An image cannot be read without the others of its row group, which are compressed with it. Those that were read last
are therefore held in memory, by each process.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from querybox.data.parquet_file import contents, has_content
from querybox.data.parquet_file import opened as open_parquet
from querybox.data.storage import opened
from querybox.errors import DataError, ImageError
from querybox.files import restore
from querybox.urls import public_name

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

HELD = 1 << 29
"""Maximum number of bytes of the images that a process holds, unless those of a single row group are more."""
MAX_GROUP = 1 << 30
"""Maximum number of bytes of the content of a row group."""

_held: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
"""The images of row groups, by place and number; those that were read last are at the end."""


def require_small_groups(name: str, metadata: FileMetaData) -> None:
    """Check that the row groups of a file can be in memory.

    Raises:
        DataError: One of them is larger than `MAX_GROUP`.
    """
    for group in range(metadata.num_row_groups):
        if (size := metadata.row_group(group).total_byte_size) > MAX_GROUP:
            raise DataError(
                f"{name}: has {size:,} bytes in row group {group}, which is read as a whole; expected at most "
                f"{MAX_GROUP:,}: write it in smaller ones (row_group_size=100)"
            )


def read_row(place: str, group: int, row: int, size: int) -> bytes:
    """Return an image file.

    Args:
        place: Path or URL of the Parquet file.
        group: The row group, from 0.
        row: The row in it, from 0.
        size: Number of bytes of the image.

    Raises:
        ImageError: The file is missing or damaged, or has changed.
        StorageError: Its storage cannot be reached, or refuses.
    """
    images = row_group(place, group)
    if row >= len(images) or len(images[row]) != size:
        name = public_name(place)
        raise ImageError(
            f"{name}: has no image of {size:,} bytes in row {row} of row group {group}; expected an unchanged file: "
            f"{restore(name)}"
        )
    return images[row]


def row_group(place: str, group: int) -> list[bytes]:
    """Return the images of a row group, from memory if it was read lately; the image of a row without one is empty.

    Raises:
        ImageError: As for `read_row`.
        StorageError: As for `read_row`.
    """
    images = _held.pop((place, group), None) or read_row_group(place, group)
    _held[place, group] = images
    while len(_held) > 1 and sum(len(image) for each in _held.values() for image in each) > HELD:
        _held.popitem(last=False)
    return images


def read_row_group(place: str, group: int) -> list[bytes]:
    """Return the images of a row group, which is read in one piece.

    Raises:
        ImageError: As for `read_row`.
        StorageError: As for `read_row`.
    """
    name = public_name(place)
    try:
        with opened(place, ahead=False) as file, open_parquet(name, file, whole=True) as parquet:
            file.limit = MAX_GROUP
            require_small_groups(name, parquet.metadata)
            column = next((field.name for field in parquet.schema_arrow if has_content(field.type)), None)
            if column is None or group >= parquet.num_row_groups:
                return []
            return [content or b"" for content in contents(parquet, group, column)]
    except ImageError:
        raise
    except DataError as error:
        raise ImageError(str(error)) from None
