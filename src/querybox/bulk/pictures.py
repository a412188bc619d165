"""The images of a part: encoded, then decoded by several threads, which read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

from jaxtyping import UInt8
from torch import Tensor

from querybox.data.encoded import EncodedImage
from querybox.data.image import read_image
from querybox.data.storage import read
from querybox.errors import ImageError
from querybox.pixels import as_pixels
from querybox.structures import PixelRange
from querybox.urls import public_name

READERS = 4
"""Number of images that are read and decoded while the model runs."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that is not decoded yet."""

    name: str
    """Path of the file, or URL without credentials (see `querybox.urls.public_name`); or those of its shard with the
    member or row: ``shard.tar#1.jpg``, ``train.parquet#0``."""
    load: Callable[[], bytes]
    """Returns the content of the file. Raises ImageError if it cannot be read, and OSError if its storage cannot."""

    @classmethod
    def stored(cls, place: str) -> Self:
        """Return the image with a path or URL."""
        return cls(public_name(place), partial(read, place))

    @classmethod
    def of(cls, name: str, content: bytes) -> Self:
        """Return an image whose content is known."""
        return cls(name, lambda: content)

    @classmethod
    def broken(cls, name: str, reason: str) -> Self:
        """Return an image that cannot be read."""

        def refuse() -> bytes:
            raise ImageError(reason)

        return cls(name, refuse)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image in memory, or why it cannot be read."""

    name: str
    pixels: UInt8[Tensor, "3 h w"] | None
    error: str | None = None


def decode(picture: Picture, pixel_range: PixelRange | None) -> Decoded:
    """Decode an image.

    Raises:
        OSError: Its storage cannot be read.
    """
    try:
        encoded = EncodedImage(name=picture.name, content=picture.load())
        return Decoded(picture.name, as_pixels(read_image(encoded, pixel_range=pixel_range)))
    except ImageError as error:
        return Decoded(picture.name, None, str(error))


def decode_ahead(pictures: Iterable[Picture], pixel_range: PixelRange | None) -> Iterator[Decoded]:
    """Decode images in their order, `READERS` of them ahead of the one that is yielded.

    Raises:
        OSError: The storage of one cannot be read.
    """
    waiting: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for picture in pictures:
            waiting.append(pool.submit(decode, picture, pixel_range))
            if len(waiting) > READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
