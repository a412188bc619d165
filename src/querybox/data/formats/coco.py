"""COCO JSON: the format of https://cocodataset.org/#format-data, object detection."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from querybox.data.findings import FindingCollector
from querybox.data.formats.coco_json import (
    Annotations,
    CocoCategory,
    CocoImage,
    Columns,
    Id,
    location,
    numbers,
    parse_coco,
)
from querybox.data.json_stream import stream_members
from querybox.data.layout import dataset_root, subfolders
from querybox.data.locate import ImageLocator, list_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import SPLITS, Format, Reader, by_split, split_name
from querybox.data.text import read_text
from querybox.errors import DataError, ImageError
from querybox.files import is_regular
from querybox.settings import type_adapter
from querybox.structures import Category

_MAX_FILES = 100
"""Folders with more JSON files have one per image and are not COCO."""
_RECOGNISED = 2**16
"""Number of bytes at the beginning and the end of a file by which it is recognised."""
_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*[^\s\d]')
"""Members of COCO's JSON. In other files, such as the metrics of an evaluation, they may be numbers."""
_OTHERS = re.compile(rb'"categories"\s*:\s*\{\s*"label"|"segments_info"')
"""Datumaro's annotations, and COCO's panoptic ones."""


def coco_splits(path: Path) -> dict[str, Reader]:
    """Return a reader for a COCO file, or for each split of a COCO folder; see `splits_of`.

    Where there are `instances*.json`, as in the official dataset, only these are read.
    """
    return splits_of(path, "instances", _is_coco, read_coco_dataset)


def splits_of(
    path: Path,
    preferred: str,
    recognises: Callable[[Path], bool],
    read: Callable[[Path, Path | None], DetectionData],
) -> dict[str, Reader]:
    """Return a reader for a JSON file, or for each split of a folder.

    Files are recognised by their content. They are searched in `annotations/`, in the folder itself, and in its
    subfolders (`train/_annotations.coco.json`), in this order.

    Args:
        path: The file or the folder.
        preferred: Beginning of the names of files; where there are such, only these are read.
        recognises: Returns whether a file has the format.
        read: Reads a file, given also the folder of the dataset if that is `path`.
    """
    if path.is_file():
        return {split_name(path.stem): partial(read, path, None)} if recognises(path) else {}
    for files in _candidates(path):
        files = [file for file in files if file.stem.startswith(preferred)] or files
        if files := [file for file in files if recognises(file)]:
            names = {_name(file, path): file for file in files}
            if len(names) < len(files):
                names = {file.relative_to(path).with_suffix("").as_posix(): file for file in files}
            return by_split(
                {name: partial(_read_of_folder, read, file, path, files) for name, file in names.items()}
            )
    return {}


def _read_of_folder(
    read: Callable[[Path, Path | None], DetectionData], file: Path, folder: Path, files: Sequence[Path]
) -> DetectionData:
    """Read one of the `files` of a folder; add a finding for each image beside those it lists that no file lists."""
    data, locator = read(file, folder), image_locator(file, folder)
    if locator.root != folder:  # images of a folder above, which may be those of other datasets
        return data
    findings = FindingCollector(data.source, known=data.findings)
    used = {image.path for image in data.images}
    known = used | {
        place.path for one in data.findings for place in one.places if isinstance(place.path, Path)
    }
    folders = {path.parent for path in used}
    unlisted = [path for path in map(folder.joinpath, locator.others(known)) if path.parent in folders]
    listed = set().union(*(_images_of(one, folder) for one in files if one != file)) if unlisted else set()
    for path in unlisted:
        if path not in listed:
            findings.add("unlabeled_image", str(path))
    return replace(data, findings=findings.by_kind())


def _images_of(file: Path, folder: Path) -> Iterator[Path]:
    """Yield the images that a file lists, as far as it can be parsed; its own reader reports the rest."""
    locator, image = image_locator(file, folder), type_adapter(CocoImage)
    with suppress(ValueError, RecursionError, DataError):
        for _, items in islice(stream_members(read_text(file, FindingCollector(file)), {"images"}), 1):
            for item in items:
                with suppress(ImageError):
                    if path := locator.find(image.validate_python(item).file_name):
                        yield path


def _name(file: Path, folder: Path) -> str:
    in_place = file.parent in {folder, folder / "annotations"} or split_name(file.stem) in SPLITS
    return file.stem if in_place else file.parent.name


def _candidates(folder: Path) -> Iterator[list[Path]]:
    """Yield the JSON files in each place; folders with a file per image are left out."""
    places = [[folder / "annotations"], [folder], subfolders([folder])]
    for place in places:
        lists = [list_files(one, ".json") for one in place]
        yield [file for files in lists if len(files) <= _MAX_FILES for file in files]


def json_ends(file: Path) -> tuple[bytes, bool] | None:
    """Return the beginning and the end of a JSON file, by which it is recognised, and whether they are all of it.

    Returns:
        None if it is not a file with this suffix.
    """
    if file.suffix.lower() != ".json" or not is_regular(file):
        return None
    with file.open("rb") as stream:
        content = stream.read(_RECOGNISED)
        whole = len(content) < _RECOGNISED
        if not whole:
            stream.seek(max(_RECOGNISED, file.stat().st_size - _RECOGNISED))
            content += stream.read()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.replace(b"\0", b"")[2:]
    return content.removeprefix(codecs.BOM_UTF8).lstrip(), whole


def _is_coco(file: Path) -> bool:
    """Return whether a JSON file is COCO's, by the lists at its beginning and its end.

    A file in its usual place may be corrupt, but it must not be a list, as in other formats.
    """
    ends = json_ends(file)
    if ends is None or _OTHERS.search(ends[0]):
        return False
    content, whole = ends
    in_place = file.parent.name == "annotations" and split_name(file.stem) in SPLITS
    if in_place or file.name == "_annotations.coco.json":
        return not content.startswith(b"[")
    found = {match[1] for match in _LISTS.finditer(content)}
    return content.startswith(b"{") and len(found) >= (2 if whole else 1)


def read_coco_dataset(file: Path, root: Path | None = None) -> DetectionData:
    """Read a COCO file, of which at least one image file must exist.

    Raises:
        DataError: As for `read_coco`, or none of the image files exists.
    """
    return require_any_image(read_coco(file, root), image_locator(file, root).folders)


def read_coco(file: Path, root: Path | None = None) -> DetectionData:
    """Read the annotations of a COCO file. The image files need not exist. Problems are among the data's `findings`.

    Labels are assigned in ascending order of category ids. Image ids, category ids and names are kept, including gaps
    and 0. An `area` that is missing or 0 defaults to that of the box, a missing `iscrowd` to 0, a size that is missing
    or 0 to that in the image's header.

    Args:
        file: The JSON file.
        root: The dataset's folder, which contains the images; see `dataset_root` for the default, and `image_locator`
            for the location of images.

    Raises:
        DataError: The file is not COCO JSON.
    """
    findings = FindingCollector(file)
    content = parse_coco(file, findings)
    category_ids = numbers((category.id for category in content.categories), "category", findings)
    image_ids = numbers((image.id for image in content.images), "image", findings)
    categories, labels = labelled(content.categories, category_ids)
    _note_unknown_ids(content.annotations, labels, image_ids, findings)
    last = {image.id: index for index, image in enumerate(content.images)}  # the last one of a repeated id
    objects = Columns.of(content.annotations, labels, last)
    del content.annotations  # before the records are created, so that their memory is used for these
    reader = _RecordReader(image_locator(file, root), objects, findings)
    records = [
        reader.read(image_ids[image.id], image, index)
        for index, image in enumerate(content.images)
        if last[image.id] == index
    ]
    return DetectionData(
        source=file,
        categories=categories,
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )


def image_locator(file: Path, root: Path | None = None) -> ImageLocator:
    """Return the locator of the images of a COCO file.

    Of the dataset's folder (see `dataset_root`), these folders come first, in this order: `images/<split>`, `<split>`,
    `images`, and the folder itself, where `<split>` is the file name without extension, its part after the last `_`
    (`train2017`), or a folder of the same split (`train2017` for `train.json`). For other places see `ImageLocator`.
    """
    base = dataset_root(file)
    names = [file.stem, file.stem.rpartition("_")[2]]
    if (split := split_name(file.stem)) in SPLITS:
        names += [path.name for path in subfolders([base / "images", base]) if split_name(path.name) == split]
    folders_of_split = [base / parent / name for parent in ("images", "") for name in dict.fromkeys(names)]
    if root is None or not base.is_relative_to(root):
        root = base
    return ImageLocator(root, [*folders_of_split, base / "images", base, file.parent])


def labelled(
    entries: Sequence[CocoCategory], category_ids: Mapping[Id, int]
) -> tuple[tuple[Category, ...], dict[Id, int]]:
    """Return the classes in ascending order of their numbers, and the label of each id.

    Args:
        entries: The entries of `categories`.
        category_ids: The number of each id.
    """
    entry_of = {category_ids[entry.id]: entry for entry in entries}
    ascending = sorted(entry_of)
    categories = tuple(
        Category(id=number, name=entry_of[number].name, stuff=entry_of[number].isthing is False)
        for number in ascending
    )
    label_of = {number: label for label, number in enumerate(ascending)}
    return categories, {one: label_of[number] for one, number in category_ids.items()}


def _note_unknown_ids(
    annotations: Annotations,
    labels: Mapping[Id, int],
    image_ids: Mapping[Id, int],
    findings: FindingCollector,
) -> None:
    items = zip(annotations.ids, annotations.image_ids, annotations.category_ids, strict=True)
    for index, (number, image_id, category_id) in enumerate(items):
        if image_id not in image_ids:
            findings.add("absent_image", f"{location(index, number)} of image {image_id}")
        elif category_id not in labels:
            what = f"{location(index, number)} has category id {category_id}"
            findings.add("unknown_category", what, image_id=image_ids[image_id])


class _RecordReader:
    def __init__(self, locator: ImageLocator, objects: Columns, findings: FindingCollector) -> None:
        self.locator = locator
        self.objects = objects
        self.findings = findings

    def read(self, number: int, image: CocoImage, index: int) -> ImageRecord | None:
        """Create the record of `images[index]`, which gets the id `number`; None if it is excluded."""
        file = self.locator.find_or_note(
            image.file_name, image_id=number, where=f"images[{index}].file_name", findings=self.findings
        )
        if file is None:
            return None
        size = image.size or read_size_or_note(file, number, self.findings)
        if size is None:
            return None
        objects, rows = self.objects, self.objects.of_image(index)
        for kind, missing in (("no_area", objects.no_area), ("no_iscrowd", objects.no_iscrowd)):
            for row in rows[missing[rows]].tolist():
                self.findings.add(kind, objects.location(row), image_id=number, path=file)
        return make_record(
            id=number,
            path=file,
            size=size,
            boxes_xyxy=objects.boxes_xyxy[rows],
            labels=objects.labels[rows],
            crowd=objects.crowd[rows],
            areas=objects.areas[rows],
            findings=self.findings,
            locate=lambda place: objects.location(int(rows[place])),
            size_stated=image.size is not None,
            masks=[objects.masks.get(row) for row in rows.tolist()] if objects.masks else None,
            boxed=objects.boxed[rows].tolist(),
        )


COCO = Format(
    name="COCO",
    expected="COCO JSON (an object with 'images', 'annotations' and 'categories'): a .json file, or annotations/*.json",
    splits=coco_splits,
)
