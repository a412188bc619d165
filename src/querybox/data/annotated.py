"""Images with objects whose classes are names, as many annotation tools write them, and datasets made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from querybox.data.findings import Corners, FindingCollector
from querybox.data.layout import locator_for, split_files
from querybox.data.locate import ImageLocator
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import Reader, by_split
from querybox.structures import Category


class AnnotatedObject(NamedTuple):
    """One object of an image."""

    where: str
    """Its place in its file, for messages."""
    category: str
    box_xyxy: Corners
    """Corners in pixels, or in 0-1 of the image if it is `relative`."""
    crowd: bool = False
    area: float | None = None
    """Area in square pixels; None for that of the box."""


@dataclass(slots=True, kw_only=True)
class AnnotatedImage:
    """An image as its annotations describe it."""

    name: str
    """The name of its file as it is written."""
    where: str
    """The place in the annotations, for messages."""
    size: tuple[int, int] | None = None
    """(height, width) as stated; None if it is not."""
    relative: bool = False
    """Whether boxes are in 0-1 of the image; otherwise in pixels."""
    objects: list[AnnotatedObject] = field(default_factory=list)


class AnnotatedSplit(NamedTuple):
    """A split whose annotations have not been read yet."""

    source: Path
    """Its file or folder."""
    locator: ImageLocator
    parse: Callable[[FindingCollector], Sequence[AnnotatedImage]]
    """Reads the annotations; the image files need not exist."""


def alphabetical(names: Collection[str]) -> tuple[Category, ...]:
    """Return categories with the ids 1 ... C in alphabetical order, for formats without ids."""
    return tuple(Category(id=number, name=name) for number, name in enumerate(sorted(names), start=1))


def annotated_splits(
    splits: Mapping[str, AnnotatedSplit],
    categorize: Callable[[Collection[str]], tuple[Category, ...]] = alphabetical,
) -> dict[str, Reader]:
    """Return a reader for each split.

    The classes of every split are those of all splits. Image ids are 1, 2 ... in the order of the annotations. Problems
    are among the data's `findings`.

    Args:
        splits: The splits by name.
        categorize: Returns the categories of the names that occur.
    """
    return by_split({name: partial(_read, split, splits, categorize) for name, split in splits.items()})


def splits_by_file(
    path: Path,
    suffix: str,
    recognises: Callable[[Path], bool],
    parse: Callable[[Path, FindingCollector], Sequence[AnnotatedImage]],
    categorize: Callable[[Collection[str]], tuple[Category, ...]] = alphabetical,
) -> dict[str, Reader]:
    """Return a reader for each split of a format with one annotation file for each split.

    Args:
        path: See `split_files`.
        suffix: See `split_files`.
        recognises: See `split_files`.
        parse: Reads a file.
        categorize: See `annotated_splits`.
    """
    files = split_files(path, suffix, recognises)
    splits = {
        name: AnnotatedSplit(file, locator_for(path, file), partial(parse, file))
        for name, file in files.items()
    }
    return annotated_splits(splits, categorize)


def _read(
    split: AnnotatedSplit,
    splits: Mapping[str, AnnotatedSplit],
    categorize: Callable[[Collection[str]], tuple[Category, ...]],
) -> DetectionData:
    findings = FindingCollector(split.source)
    images = split.parse(findings)
    names = _names(images)
    for other in splits.values():
        if other is not split:
            names |= _names(other.parse(FindingCollector(other.source)))
    _note_repeated_images(images, findings)
    categories = categorize(names)
    labels = {category.name: label for label, category in enumerate(categories)}
    records = [
        _record(number, image, labels, split.locator, findings)
        for number, image in enumerate(images, start=1)
    ]
    data = DetectionData(
        source=split.source,
        categories=categories,
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )
    return require_any_image(data, split.locator.folders)


def _names(images: Sequence[AnnotatedImage]) -> set[str]:
    return {item.category for image in images for item in image.objects}


def _note_repeated_images(images: Sequence[AnnotatedImage], findings: FindingCollector) -> None:
    for name, count in Counter(image.name for image in images).items():
        if count > 1:
            what = f"{findings.file}: image {name[:200]!r} is listed {count} times; merge its entries"
            findings.add("malformed", what)


def _record(
    number: int,
    image: AnnotatedImage,
    labels: Mapping[str, int],
    locator: ImageLocator,
    findings: FindingCollector,
) -> ImageRecord | None:
    path = locator.find_or_note(image.name, image_id=number, where=image.where, findings=findings)
    if path is None:
        return None
    size = image.size or read_size_or_note(path, number, findings)
    if size is None:
        return None
    height, width = size
    scale = (width, height, width, height) if image.relative else (1, 1, 1, 1)
    return make_record(
        id=number,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=[
            [side * factor for side, factor in zip(item.box_xyxy, scale, strict=True)]
            for item in image.objects
        ],
        labels=[labels[item.category] for item in image.objects],
        crowd=[item.crowd for item in image.objects],
        areas=[item.area for item in image.objects],
        findings=findings,
        locate=lambda index: image.objects[index].where,
        size_stated=image.size is not None,
    )
