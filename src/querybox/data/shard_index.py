"""The index of a shard: where its images are, and their annotations.

Both are spread over a tar, and the sizes of images over any shard, so that making its index takes as long as reading it
from a storage. The index is therefore written to a folder, once, and read from there as long as the shard stays the
same. Of several processes that need it, one makes it, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import Field, PlainValidator, TypeAdapter

from querybox.data.encoded import EncodedImage
from querybox.data.image import MAX_PIXELS, read_size
from querybox.data.storage import MAX_CONTENT, version
from querybox.errors import DataError, DiskFullError, ImageError
from querybox.files import require_regular, write_text
from querybox.text import to_json
from querybox.urls import public_name

logger = logging.getLogger(__name__)

FOLDER = ".index"
"""Name of the folder of indices, beside the shards or the file that names them."""
LOCK = "lock"
"""Name of the file in it that the process which makes an index has locked."""
MAX_ANNOTATION = 1 << 24
"""Maximum number of bytes of the annotation of an image."""
MAX_TEXT = 1 << 28
"""Maximum number of bytes of the annotations of a shard, which are in memory together."""

_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Shape = tuple[_Side, _Side]
"""(height, width) in pixels."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")  # noqa: TRY004 - which pydantic reports
    return value


_Name = Annotated[str, PlainValidator(_text)]
"""A name of a file, which need not be UTF-8; pydantic's own strings are."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its annotation."""

    image: _Name
    """Name of the image: that of the member of a tar."""
    start: Annotated[int, Field(ge=0)]
    """See `querybox.data.shards.ShardImage`."""
    size: Annotated[int, Field(ge=0, le=MAX_CONTENT)]
    """Number of bytes of the image."""
    annotation: _Name
    """Name of the annotation: that of the member of a tar."""
    text: str
    """Content of the annotation."""
    shape: Shape | None
    """Size of the image by its header; None if that cannot be read."""
    group: Annotated[int, Field(ge=0)] | None = None
    """See `querybox.data.shards.ShardImage`."""

    @property
    def has_labels(self) -> bool:
        """Whether the annotation is text with YOLO's labels; otherwise it is JSON."""
        return self.annotation.lower().endswith(".txt")


@dataclass(slots=True)
class ShardIndex:
    """What is in a shard."""

    version: str
    """See `querybox.data.storage.version`."""
    samples: list[Sample] = field(default_factory=list)
    """The samples, in the order of the images."""
    problems: list[tuple[str, _Name]] = field(default_factory=list)
    """Kinds of findings, each with a description."""
    names: dict[int, str] = field(default_factory=dict)
    """Names of classes by number, as the shard states them."""


MakeIndex = Callable[[str, str], ShardIndex]
"""Returns the index of a shard, given its path or URL and its version."""
_INDEX = TypeAdapter(ShardIndex)


def read_index(place: str, folder: Path, make: MakeIndex) -> ShardIndex:
    """Return the index of a shard: that in `folder`, or a new one, which is written there if possible.

    Args:
        place: Path or URL of the shard.
        folder: The folder of indices.
        make: Makes the index.

    Raises:
        DataError: The shard is missing or damaged.
        StorageError: Its storage cannot be reached, or refuses.
    """
    file = index_file(place, folder)
    if link := next((path for path in (folder, file, folder / LOCK) if path.is_symlink()), None):
        raise DataError(
            f"{link}: is a link; an index is only written to the folder of the dataset: remove it"
        )
    stated = version(place)
    if (index := written_index(file, stated)) is not None:
        return index
    with locked(folder):
        if (index := written_index(file, stated)) is not None:  # another process has made it
            return index
        index = make(place, stated)
        try:
            write_text(file, to_json(_INDEX.dump_python(index)))
        except (OSError, DiskFullError) as error:
            logger.warning(
                "%s: the index cannot be written (%s); it will be made again the next time", file, error
            )
    return index


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Context manager in which no other process makes an index in a folder, if the file system has locks."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # each process makes the index
        pass
    try:
        yield
    finally:
        lock.release()


def index_file(place: str, folder: Path) -> Path:
    """Return the file of the index of a shard, which is the same for other credentials of the same URL."""
    digest = hashlib.sha256(public_name(place).encode(errors="surrogatepass")).hexdigest()
    return folder / f"{digest[:32]}.json"


def written_index(file: Path, stated: str) -> ShardIndex | None:
    """Return an index from its file; None if there is none, it is damaged, or that of another version of its shard."""
    try:
        require_regular(file, DataError)
        index = _INDEX.validate_python(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError, DataError) as error:
        logger.warning("%s: is not an index (%s); a new one is made", file, type(error).__name__)
        return None
    return index if index.version == stated else None


def image_shape(name: str, content: bytes) -> Shape | None:
    """Return the size of an image by its header; None if it cannot be read, which is reported with its record."""
    try:
        return read_size(EncodedImage(name=name, content=content))
    except ImageError:
        return None
