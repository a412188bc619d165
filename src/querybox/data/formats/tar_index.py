"""The index of a tar, a shard of WebDataset: it is read once, from beginning to end."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple

from querybox.data.image import SUFFIXES
from querybox.data.locate import is_junk
from querybox.data.shard_index import MAX_ANNOTATION, MAX_TEXT, Sample, Shape, ShardIndex, image_shape
from querybox.data.storage import MAX_CONTENT, StoredFile, opened, too_large
from querybox.data.tar import Member, read_member, read_members
from querybox.errors import DataError
from querybox.urls import public_name

ANNOTATIONS = (".json", ".txt")
"""File name extensions of annotations; JSON is preferred to text, which may be a caption."""


def tar_index(place: str, stated: str) -> ShardIndex:
    """Return the index of a tar.

    Args:
        place: Path or URL of the tar.
        stated: Its version.

    Raises:
        DataError: The tar is missing, damaged, cut off or compressed, or has no image.
        StorageError: Its storage cannot be reached, or refuses.
    """
    name = public_name(place)
    with opened(place) as file:
        reader = _Reader(name, file)
        for member in read_members(name, file):
            reader.add(member)
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
        is_image = kind in SUFFIXES
        if not is_image and kind not in ANNOTATIONS:
            return
        former = self.annotations.get(key)
        is_repeated = key in self.images if is_image else former is not None and former.kind == kind
        if (problem := self.problem(member, kind)) is not None:
            self.problems.append(problem)
        elif is_repeated:
            what = "has the name of another member; expected one image, and one annotation of it"
            self.problems.append(("malformed", f"{self.place}#{member.name}: {what}"))
        elif is_image:
            content = read_member(self.place, self.file, member)
            self.images[key] = member, image_shape(member.name, content)
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
