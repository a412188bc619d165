"""The index of a tar: where its images are, and the annotations beside them.

The headers of a tar are spread over it, so that making its index takes as long as reading it from a storage. The index
is therefore written to a hidden folder, once, and read from there as long as the tar stays the same.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from querybox.data.encoded import EncodedImage
from querybox.data.image import MAX_PIXELS, SUFFIXES, read_size
from querybox.data.locate import is_junk
from querybox.data.storage import MAX_CONTENT, StoredFile, opened, too_large, version
from querybox.data.tar import Member, read_member, read_members
from querybox.errors import DataError, DiskFullError, ImageError
from querybox.files import require_regular, write_text
from querybox.urls import public_name

log = logging.getLogger(__name__)

FOLDER = ".index"
"""Name of the folder of indices, beside the shards or the file that names them."""
ANNOTATIONS = (".json", ".txt")
"""File name extensions of annotations; JSON is preferred to text, which may be a caption."""
MAX_ANNOTATION = 1 << 24
"""Maximum number of bytes of the annotation of an image."""
MAX_TEXT = 1 << 28
"""Maximum number of bytes of the annotations of a shard, which are in memory together."""

_Side = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
Shape = tuple[_Side, _Side]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its annotation."""

    image: str
    """Name of the member with the image."""
    start: Annotated[int, Field(ge=0)]
    """The byte of the tar at which the image begins."""
    size: Annotated[int, Field(ge=0, le=MAX_CONTENT)]
    """Number of bytes of the image."""
    annotation: str
    """Name of the member with the annotation."""
    text: str
    """Its content."""
    shape: Shape | None
    """Size of the image by its header; None if that cannot be read."""

    @property
    def has_labels(self) -> bool:
        """Whether the annotation is text with YOLO's labels; otherwise it is JSON."""
        return self.annotation.lower().endswith(".txt")


@dataclass(slots=True)
class ShardIndex:
    """What is in a tar."""

    version: str
    """See `querybox.data.storage.version`."""
    samples: list[Sample] = field(default_factory=list)
    """In the order of the images."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Kinds of findings, each with a description."""


_INDEX = TypeAdapter(ShardIndex)


def read_index(place: str, folder: Path) -> ShardIndex:
    """Return the index of a tar: that in `folder`, or a new one, which is written there if possible.

    Args:
        place: Path or URL of the tar.
        folder: The folder of indices.

    Raises:
        DataError: The tar is missing, damaged, cut off or compressed.
        StorageError: Its storage cannot be reached, or refuses.
    """
    if link := next((path for path in (folder, index_file(place, folder)) if path.is_symlink()), None):
        raise DataError(
            f"{link}: is a link; an index is written to the folder of the dataset alone: remove it"
        )
    stated = version(place)
    file = index_file(place, folder)
    index = written_index(file)
    if index is None or index.version != stated:
        index = make_index(place, stated)
        try:
            write_text(file, _INDEX.dump_json(index).decode())
        except (OSError, DiskFullError) as error:
            log.warning("%s: the index cannot be written (%s); it is made again the next time", file, error)
    return index


def index_file(place: str, folder: Path) -> Path:
    """Return the file of the index of a tar, which is the same for other credentials of the same URL."""
    return (
        folder / f"{hashlib.sha256(public_name(place).encode(errors='surrogatepass')).hexdigest()[:32]}.json"
    )


def written_index(file: Path) -> ShardIndex | None:
    """Return an index from its file; None if there is none, or it is damaged."""
    try:
        require_regular(file, DataError)
        return _INDEX.validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError, DataError) as error:
        log.warning("%s: is not an index (%s); a new one is made", file, type(error).__name__)
        return None


def make_index(place: str, stated: str) -> ShardIndex:
    """Return the index of a tar, which is read once, from beginning to end.

    Args:
        place: Path or URL of the tar.
        stated: Its version.

    Raises:
        DataError: As for `read_index`.
        StorageError: As for `read_index`.
    """
    name = public_name(place)
    with opened(place) as file:
        reader = _Reader(name, file)
        try:
            for member in read_members(name, file):
                reader.add(member)
        except DataError:
            if file.failure is not None:  # which the reader of tars takes for damage
                raise file.failure from None
            raise
    if not reader.images:
        raise DataError(f"{name}: the tar has no image; expected members such as 000000.jpg and 000000.json")
    return reader.index(stated)


class _Annotation(NamedTuple):
    kind: str
    name: str
    text: str


class _Reader:
    """Reads the members of a tar. The image and the annotation of a sample may be apart."""

    def __init__(self, place: str, file: StoredFile) -> None:
        self.place = place
        self.file = file
        self.images: dict[str, tuple[Member, Shape | None]] = {}
        self.annotations: dict[str, _Annotation] = {}
        self.length = 0
        self.problems: list[tuple[str, str]] = []

    def add(self, member: Member) -> None:
        """Add a member, unless it is neither an image nor an annotation."""
        path = PurePosixPath(member.name)
        key, kind = str(path.with_suffix("")), path.suffix.lower()
        if any(is_junk(part) for part in path.parts if part != ".."):
            return
        if kind not in SUFFIXES and kind not in ANNOTATIONS:
            return
        former = self.annotations.get(key)
        if (problem := self.problem(member, kind)) is not None:
            self.problems.append(problem)
        elif key in self.images if kind in SUFFIXES else former is not None and former.kind == kind:
            what = "has the name of another member; expected one image, and one annotation of it"
            self.problems.append(("malformed", f"{self.place}#{member.name}: {what}"))
        elif kind in SUFFIXES:
            self.images[key] = member, self.shape(member)
        elif former is None or kind == ".json":
            self.annotations[key] = _Annotation(kind, member.name, self.text(member))

    def problem(self, member: Member, kind: str) -> tuple[str, str] | None:
        """Return the finding about a member that is not read; None if it is."""
        name = f"{self.place}#{member.name}"
        if not member.is_regular:
            return "broken_image", f"{name}: is a link, a device or sparse; expected a regular member"
        if kind in SUFFIXES and member.size > MAX_CONTENT:
            return "too_large_image", f"{name}: {too_large()}"
        if kind in ANNOTATIONS and member.size > MAX_ANNOTATION:
            return "malformed", f"{name}: has {member.size:,} bytes; expected at most {MAX_ANNOTATION:,}"
        return None

    def shape(self, member: Member) -> Shape | None:
        """Return the size of an image by its header; None if it cannot be read, which is reported with its record."""
        content = read_member(self.place, self.file, member)
        try:
            return read_size(EncodedImage(name=member.name, content=content))
        except ImageError:
            return None

    def text(self, member: Member) -> str:
        """Return an annotation.

        Raises:
            DataError: All annotations together are too large.
        """
        self.length += member.size
        if self.length > MAX_TEXT:
            raise DataError(
                f"{self.place}: has more than {MAX_TEXT:,} bytes of annotations, which are in memory together; make "
                "more and smaller shards"
            )
        content = read_member(self.place, self.file, member)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            name = f"{self.place}#{member.name}"
            self.problems.append(("malformed", f"{name}: cannot be read ({error}); expected UTF-8 text"))
            return ""

    def index(self, stated: str) -> ShardIndex:
        """Return the index of what was added."""
        found = self.annotations
        samples = [
            Sample(member.name, member.start, member.size, found[key].name, found[key].text, shape)
            for key, (member, shape) in self.images.items()
            if key in found
        ]
        lone = [
            *(("unlabeled_image", image.name) for key, (image, _) in self.images.items() if key not in found),
            *(("unmatched_label", one.name) for key, one in found.items() if key not in self.images),
        ]
        self.problems += [(kind, f"{self.place}#{name}") for kind, name in lone]
        return ShardIndex(stated, samples, self.problems)
