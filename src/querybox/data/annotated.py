"""Images with objects whose classes are names, as many annotation tools write them, and datasets made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from querybox.data.findings import Corners, FindingCollector
from querybox.data.layout import (
    dataset_root,
    files_by_split,
    folders_in_file,
    locator_for,
    split_files,
    split_folder,
)
from querybox.data.locate import ImageLocator
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.shards import ShardImage
from querybox.data.splits import Reader, by_split, split_name
from querybox.errors import DataError, ImageError
from querybox.masks import Region
from querybox.structures import Category


class AnnotatedObject(NamedTuple):
    """One object of an image."""

    where: str
    """The place of the object in its file, for messages."""
    category: str
    box_xyxy: Corners
    """Corners in pixels, or in 0-1 of the image if it is `relative`."""
    crowd: bool = False
    area: float | None = None
    """Area in square pixels; None for that of the box."""
    mask: Region | None = None
    boxed: bool = False
    """Whether the box is that of the mask."""


@dataclass(slots=True, kw_only=True)
class AnnotatedImage:
    """An image as its annotations describe it."""

    name: str
    """The name of its file as it is written."""
    where: str
    """The place in the annotations, for messages."""
    file: ShardImage | None = None
    """The file of an image in a shard; others are searched by their name."""
    size: tuple[int, int] | None = None
    """(height, width) in pixels; None if it is not known."""
    size_stated: bool = True
    """Whether the annotations state the size, if it is known; otherwise it is from the header of the image."""
    relative: bool = False
    """Whether boxes are in 0-1 of the image; otherwise in pixels."""
    objects: list[AnnotatedObject] = field(default_factory=list)


class AnnotatedSplit(NamedTuple):
    """A split whose annotations have not been read yet."""

    source: Path | str
    """Its file or folder, or its URL without credentials."""
    locator: ImageLocator
    parse: Callable[[FindingCollector], Iterable[AnnotatedImage]]
    """Reads the annotations, all or one after the other; the image files need not exist."""
    is_whole: bool
    """Whether the splits together are a whole folder, so that its images without annotations are reported."""


ParseFile = Callable[[Path, FindingCollector], Sequence[AnnotatedImage]]
"""Reads a file with annotations of several images."""
ParseImage = Callable[[Path, ImageLocator, FindingCollector], AnnotatedImage]
"""Reads the annotation file of an image; raises DataError if it is malformed."""
Categorize = Callable[[Collection[str]], tuple[Category, ...]]
"""Returns the categories of a dataset from the names that occur in it."""


def alphabetical(names: Collection[str]) -> tuple[Category, ...]:
    """Return categories with the ids 1 ... C in alphabetical order, for formats without ids."""
    return tuple(Category(id=number, name=name) for number, name in enumerate(sorted(names), start=1))


def annotated_splits(
    splits: Mapping[str, AnnotatedSplit],
    categorize: Categorize = alphabetical,
) -> dict[str, Reader]:
    """Return a reader for each split.

    The classes of every split are those of all splits. Image ids are 1, 2 ... in the order of the annotations. Problems
    are among the data's `findings`.

    Args:
        splits: The splits by name.
        categorize: See `Categorize`.
    """
    return by_split({name: partial(_read, name, splits, categorize) for name in splits})


def _read(name: str, splits: Mapping[str, AnnotatedSplit], categorize: Categorize) -> DetectionData:
    # A new reader each time, because a reader keeps what it has found.
    return _SplitReader(name, splits, categorize).read()


def splits_by_file(
    path: Path,
    suffix: str,
    recognises: Callable[[Path], bool],
    parse: ParseFile,
    categorize: Categorize = alphabetical,
) -> dict[str, Reader]:
    """Return a reader for each split of a format with one annotation file for each split, or one for all.

    The splits of a single file are the folders beside it with names of splits, if it names images in them.

    Args:
        path: See `split_files`.
        suffix: See `split_files`.
        recognises: See `split_files`.
        parse: Reads a file.
        categorize: See `annotated_splits`.
    """
    splits = {}
    for name, file in split_files(path, suffix, recognises).items():
        locator = locator_for(path, file)
        folders = folders_in_file(file)
        parts: dict[str, Callable[[FindingCollector], Sequence[AnnotatedImage]]] = {
            part: partial(_parse_part, parse, file, part, folders) for part in folders
        }
        for key, read in (parts or {name: partial(parse, file)}).items():
            splits[key] = AnnotatedSplit(file, locator, read, locator.root == path)
    return annotated_splits(splits, categorize)


def splits_by_image(
    path: Path,
    suffix: str,
    recognises: Callable[[Path], bool],
    parse: ParseImage,
    categorize: Categorize = alphabetical,
) -> dict[str, Reader]:
    """Return a reader for each split of a format with an annotation file for each image.

    Args:
        path: See `files_by_split`.
        suffix: See `files_by_split`.
        recognises: See `files_by_split`.
        parse: Reads a file; its error becomes a finding.
        categorize: See `annotated_splits`.
    """
    splits = {}
    for name, files in files_by_split(path, suffix, recognises).items():
        locator = ImageLocator(dataset_root(path))
        read = partial(_parse_each, parse, files, locator)
        splits[name] = AnnotatedSplit(path, locator, read, locator.root == path)
    return annotated_splits(splits, categorize)


def _parse_each(
    parse: ParseImage, files: Sequence[Path], locator: ImageLocator, findings: FindingCollector
) -> list[AnnotatedImage]:
    images = []
    for file in files:
        try:
            images.append(parse(file, locator, findings))
        except DataError as error:
            findings.add("malformed", str(error))
    return images


def _parse_part(
    parse: ParseFile, file: Path, folder: str, folders: Collection[str], findings: FindingCollector
) -> list[AnnotatedImage]:
    """Return the images in a file that are in one folder; add a finding for those that are in none."""
    images = []
    for image in parse(file, findings):
        parents = image.name.replace("\\", "/").split("/")[:-1]
        if folder in parents:
            images.append(image)
        elif not set(parents).intersection(folders):
            findings.add("unread_file", f"{image.where}: {image.name} is in no folder of a split")
    return images


class _SplitReader:
    """Reads one split of several."""

    def __init__(self, name: str, splits: Mapping[str, AnnotatedSplit], categorize: Categorize) -> None:
        self.name = name
        self.split = splits[name]
        self.others = [split for other, split in splits.items() if other != name]
        self.categorize = categorize
        self.findings = FindingCollector(self.split.source)
        self.paths: set[Path] = set()

    def read(self) -> DetectionData:
        labels: dict[str, int] = {}  # in order of occurrence, until all classes are known
        records = [record for record in self._records(labels) if record is not None]
        names = set(labels)
        for other in self.others:
            names |= self._names_of_other(other)
        categories = self.categorize(names)
        label_of = {category.name: label for label, category in enumerate(categories)}
        final = np.array([label_of[name] for name in labels], dtype=np.int64)
        for record in records:
            record.renumber(final)
        if self.split.is_whole:
            self._note_unlabeled_images()
        data = DetectionData(
            source=self.split.source,
            categories=categories,
            images=tuple(records),
            findings=self.findings.by_kind(),
        )
        return require_any_image(data, self.split.locator.folders)

    def _records(self, labels: dict[str, int]) -> Iterator[ImageRecord | None]:
        """Yield the record of each image, None for those that are excluded; add their classes to `labels`."""
        counts: Counter[str] = Counter()
        for number, image in enumerate(self.split.parse(self.findings), start=1):
            for item in image.objects:
                labels.setdefault(item.category, len(labels))
            if image.file is None:
                counts[image.name] += 1
            yield self._record(number, image, labels)
            image.objects.clear()  # so that large datasets are not in memory twice
        for name, count in counts.items():
            if count > 1:
                what = f"{self.split.source}: image {name[:200]!r} is listed {count} times; merge its entries"
                self.findings.add("malformed", what)

    def _record(self, number: int, image: AnnotatedImage, labels: Mapping[str, int]) -> ImageRecord | None:
        path = image.file or self._find(number, image)
        if path is None:
            return None
        size = image.size or read_size_or_note(path, number, self.findings)
        if size is None:
            return None
        height, width = size
        scale = (width, height, width, height) if image.relative else (1, 1, 1, 1)
        return make_record(
            id=number,
            path=path,
            size=size,
            boxes_xyxy=[
                [side * factor for side, factor in zip(item.box_xyxy, scale, strict=True)]
                for item in image.objects
            ],
            labels=[labels[item.category] for item in image.objects],
            crowd=[item.crowd for item in image.objects],
            areas=[item.area for item in image.objects],
            masks=[item.mask for item in image.objects],
            boxed=[item.boxed for item in image.objects],
            findings=self.findings,
            locate=lambda index: image.objects[index].where,
            size_stated=image.size is not None and image.size_stated,
        )

    def _find(self, number: int, image: AnnotatedImage) -> Path | None:
        """Return the path of an image by its name; None, after adding a finding, if it cannot be determined."""
        path = self.split.locator.find_or_note(
            image.name, image_id=number, where=image.where, findings=self.findings
        )
        if path is not None:
            self.paths.add(path)
        return path

    def _names_of_other(self, split: AnnotatedSplit) -> set[str]:
        """Return the classes of another split, and remember its images."""
        names: set[str] = set()
        for image in split.parse(FindingCollector(split.source)):
            names.update(item.category for item in image.objects)
            if self.split.is_whole:
                with suppress(ImageError):
                    if (path := split.locator.find(image.name)) is not None:
                        self.paths.add(path)
        return names

    def _note_unlabeled_images(self) -> None:
        """Add findings for images that no split lists, unless they are in the folder of another split."""
        root = self.split.locator.root
        for relative in self.split.locator.others(self.paths):
            path = root / relative
            folder = split_folder(path.parent, root)
            if not self.others or folder is None or split_name(folder) == split_name(self.name):
                self.findings.add("unlabeled_image", str(path))
