"""Images inside of shards, large files with many images, which are read one by one without the rest of their shard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from querybox.data.encoded import EncodedImage
from querybox.data.parquet_rows import read_row
from querybox.data.storage import read_range
from querybox.urls import public_name


@dataclass(frozen=True, slots=True)
class ShardImage:
    """An image file in a tar or a Parquet file."""

    shard: str
    """Path or URL of the tar or Parquet file, with credentials if it has some."""
    name: str
    """Name of the member of the tar, or of the image in the Parquet file."""
    start: int
    """The byte of the tar at which it begins; in a Parquet file, its row in the row group, from 0."""
    size: int
    """Number of its bytes."""
    group: int | None = None
    """The row group of a Parquet file, from 0, without which it cannot be read; None in a tar."""

    def __str__(self) -> str:
        """Return what error messages call it, as in predictions: without credentials."""
        return f"{public_name(self.shard)}#{self.name}"

    def read(self) -> EncodedImage:
        """Read the image file.

        Raises:
            ImageError: The shard is missing or damaged, or has changed.
            StorageError: Its storage cannot be reached, or refuses.
        """
        if self.group is None:
            content = read_range(self.shard, self.start, self.size)
        else:
            content = read_row(self.shard, self.group, self.start, self.size)
        return EncodedImage(name=str(self), content=content)


ImageFile = Path | ShardImage
"""An image file of a dataset."""


def loaded(image: str | ImageFile | EncodedImage) -> str | Path | EncodedImage:
    """Return an image file as it is, or the content of one in a shard.

    Raises:
        ImageError: As for `ShardImage.read`.
        StorageError: As for `ShardImage.read`.
    """
    return image.read() if isinstance(image, ShardImage) else image
