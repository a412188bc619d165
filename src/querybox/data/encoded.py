"""Image files in memory, as a server receives them."""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """The content of an image file."""

    name: str
    """What error messages call it."""
    content: bytes

    def __str__(self) -> str:
        """Return the name, which stands in place of a path."""
        return self.name


def open_binary(image: str | Path | EncodedImage) -> BytesIO | BufferedReader:
    """Open an image file, on the disk or in memory, for reading its bytes."""
    if isinstance(image, EncodedImage):
        return BytesIO(image.content)
    return open(image, "rb")  # noqa: PTH123 - half the time of Path.open
