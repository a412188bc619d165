"""COCO panoptic: JSON with `segments_info`, and a PNG of segments for each image.

The format is that of https://cocodataset.org/#format-data, panoptic segmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from querybox.data.findings import FindingCollector
from querybox.data.formats.coco import image_locator, json_ends, labelled, splits_of
from querybox.data.formats.coco_json import CocoCategory, CocoImage, Id, check_ids, numbers
from querybox.data.formats.coco_mask import Box, StatedBox
from querybox.data.formats.panoptic_png import MAX_ID, read_segments
from querybox.data.json_stream import stream_members
from querybox.data.layout import dataset_root
from querybox.data.locate import ImageLocator
from querybox.data.parsing import NO_BOOL, Number, validation_problem
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import Format, Reader
from querybox.data.text import read_text
from querybox.errors import DataError, ImageError
from querybox.masks import Rle
from querybox.text import listed

_EXPECTED = "expected COCO panoptic JSON, an object with 'images', 'annotations' and 'categories'"


@dataclass(slots=True, kw_only=True)
class PanopticCategory(CocoCategory):
    """An entry of `categories`."""

    isthing: bool


@dataclass(slots=True, kw_only=True)
class SegmentInfo:
    """An entry of `segments_info`."""

    id: Annotated[int, Field(ge=1, le=MAX_ID), NO_BOOL]
    category_id: Id
    bbox: StatedBox = None
    area: Number | None = None
    iscrowd: bool | None = None


@dataclass(slots=True, kw_only=True)
class PanopticAnnotation:
    """An entry of `annotations`: the segments of an image."""

    image_id: Id
    file_name: str
    segments_info: list[SegmentInfo]


_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "categories": TypeAdapter(PanopticCategory),
    "images": TypeAdapter(CocoImage),
    "annotations": TypeAdapter(PanopticAnnotation),
}


def panoptic_splits(path: Path) -> dict[str, Reader]:
    """Return a reader for a COCO panoptic file, or for each split of a folder; see `coco.splits_of`.

    Where there are `panoptic*.json`, as in the official dataset, only these are read.
    """
    return splits_of(path, "panoptic", _is_panoptic, read_panoptic_dataset)


def _is_panoptic(file: Path) -> bool:
    ends = json_ends(file)
    return ends is not None and ends[0].startswith(b"{") and b'"segments_info"' in ends[0]


def read_panoptic_dataset(file: Path, root: Path | None = None) -> DetectionData:
    """Read a COCO panoptic file, of which at least one image file must exist.

    Raises:
        DataError: As for `read_panoptic`, or none of the image files exists.
    """
    return require_any_image(read_panoptic(file, root), _image_locator(file, root).folders)


def read_panoptic(file: Path, root: Path | None = None) -> DetectionData:
    """Read the annotations of a COCO panoptic file: an object, with a mask, for every segment of things and of stuff.

    Boxes and areas are those of the pixels. Problems are among the data's `findings`. The JSON is parsed one entry at a
    time, twice, because the whole takes ten times the memory of what is used of it.

    Args:
        file: The JSON file. The PNGs are in the folder with its name without `.json`, beside it or in the dataset's
            folder, otherwise beside it.
        root: The dataset's folder, which contains the images; see `coco.image_locator`.

    Raises:
        DataError: The file is not COCO panoptic JSON.
    """
    findings = FindingCollector(file)
    text = read_text(file, findings)
    lists: dict[str, list[Any]] = {"categories": [], "images": [], "annotations": []}
    for name, _, entry in _entries(file, text):
        lists[name].append(entry.image_id if name == "annotations" else entry)
    check_ids(lists["categories"], lists["images"], lists["annotations"], findings)
    category_ids = numbers((category.id for category in lists["categories"]), "category", findings)
    image_ids = numbers((image.id for image in lists["images"]), "image", findings)
    categories, labels = labelled(lists["categories"], category_ids)
    images = {
        image.id: _Image(image_ids[image.id], image, f"images[{index}]")
        for index, image in enumerate(lists["images"])
    }
    reader = _RecordReader(file, root, labels, findings)
    records: dict[Id, ImageRecord | None] = {}
    for name, index, entry in _entries(file, text):
        if name != "annotations":
            continue
        where = f"annotations[{index}]"
        if (image := images.get(entry.image_id)) is not None:
            records[entry.image_id] = reader.read(image, entry, where)
        else:
            findings.add("absent_image", f"{where} of image {entry.image_id}")
    for one in images.values():
        if one.entry.id not in records:
            findings.add("unlabeled_image", f"{one.where}: {one.entry.file_name}", image_id=one.number)
    return DetectionData(
        source=file,
        categories=categories,
        images=tuple(record for one in images if (record := records.get(one)) is not None),
        findings=findings.by_kind(),
        panoptic=True,
    )


def _entries(file: Path, text: str) -> Iterator[tuple[str, int, Any]]:
    """Yield the entries of the three lists: the name of the list, the index, and the entry.

    Raises:
        DataError: The text is not COCO panoptic JSON.
    """
    found = set()
    try:
        for name, items in stream_members(text, _ADAPTERS):
            found.add(name)
            for index, item in enumerate(items):
                try:
                    entry = _ADAPTERS[name].validate_python(item)
                except ValidationError as error:
                    problem = validation_problem(error)
                    raise DataError(f"{file}: {name}[{index}]: {problem}; {_EXPECTED}") from None
                yield name, index, entry
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: {error}; {_EXPECTED}") from None
    if missing := _ADAPTERS.keys() - found:
        raise DataError(f"{file}: has no {listed(sorted(missing))}; {_EXPECTED}")


class _Image(NamedTuple):
    number: int
    """The id of the image."""
    entry: CocoImage
    where: str
    """The place of the entry in the file."""


class _RecordReader:
    def __init__(
        self, file: Path, root: Path | None, labels: Mapping[Id, int], findings: FindingCollector
    ) -> None:
        self.images = _image_locator(file, root)
        self.pngs = ImageLocator(_png_folder(file) or file.parent, masks=True)
        self.labels = labels
        self.findings = findings

    def read(self, image: _Image, annotation: PanopticAnnotation, where: str) -> ImageRecord | None:
        """Create the record of an image; None if it is excluded.

        Args:
            image: The image.
            annotation: Its segments.
            where: The place of the annotation, for messages.
        """
        number, entry = image.number, image.entry
        path = self.images.find_or_note(
            entry.file_name, image_id=number, where=f"{image.where}.file_name", findings=self.findings
        )
        if path is None:
            return None
        size = entry.size or read_size_or_note(path, number, self.findings)
        if size is None:
            return None
        segments = self._segments(annotation, where, number)
        of_image = f"{where}, image {number}"
        try:
            png = self._png(annotation.file_name)
            if png == path:
                what = f"{image.where}.file_name: {entry.file_name!r}; {png} is its panoptic PNG"
                self.findings.add("missing_image", what, image_id=number)
                return None
            masks, unlisted = read_segments(png, size, [one.id for one in annotation.segments_info])
        except (DataError, ImageError) as error:
            self.findings.add("broken_panoptic", f"{of_image}: {error}", image_id=number, path=path)
            return None
        ids = [one for one in segments if one in masks]
        self._note_differences(segments, masks, of_image, number, path)
        if len(unlisted):
            what = f"{of_image}: {listed(unlisted[:3].tolist())} in {png}"
            self.findings.add("unlisted_segment", what, image_id=number, path=path, count=len(unlisted))
        return make_record(
            id=number,
            path=path,
            size=size,
            boxes_xyxy=np.array([masks[one].box_xyxy for one in ids], dtype=np.float64).reshape(-1, 4),
            labels=[self.labels[segments[one].category_id] for one in ids],
            crowd=[bool(segments[one].iscrowd) for one in ids],
            areas=[masks[one].area for one in ids],
            findings=self.findings,
            locate=lambda place: f"{where}: segment {ids[place]}",
            size_stated=entry.size is not None,
            masks=[masks[one] for one in ids],
        )

    def _png(self, name: str) -> Path:
        """Return the PNG of an annotation.

        Raises:
            DataError: There is none.
            ImageError: Several files remain.
        """
        path = self.pngs.find(name)
        if path is None:
            raise DataError(f"there is no {name!r} in {self.pngs.root}")
        return path

    def _segments(self, annotation: PanopticAnnotation, where: str, image_id: int) -> dict[int, SegmentInfo]:
        """Return the segments by their numbers; those of unknown classes and repeated ones are errors."""
        segments: dict[int, SegmentInfo] = {}
        for index, segment in enumerate(annotation.segments_info):
            place = f"{where}.segments_info[{index}] (id {segment.id})"
            if segment.category_id not in self.labels:
                what = f"{place} has category id {segment.category_id}"
                self.findings.add("unknown_category", what, image_id=image_id)
            elif segment.id in segments:
                self.findings.add("repeated_annotation_id", f"{place} is not the only one", image_id=image_id)
            else:
                segments[segment.id] = segment
        return segments

    def _note_differences(
        self,
        segments: Mapping[int, SegmentInfo],
        masks: Mapping[int, Rle],
        where: str,
        image_id: int,
        path: Path,
    ) -> None:
        """Add findings for segments that have no pixels, or others than they state."""
        for number, segment in segments.items():
            kind, what = "mismatched_segment", ""
            if number not in masks:
                kind, what = "absent_segment", "no pixel"
            elif segment.area and segment.area != masks[number].area:
                what = f"the area {segment.area:g}, its pixels {masks[number].area}"
            elif segment.bbox is not None and not _fits(segment.bbox, masks[number]):
                what = f"the bbox {list(segment.bbox)}, its pixels the corners {masks[number].box_xyxy}"
            if what:
                self.findings.add(kind, f"{where}: segment {number} has {what}", image_id=image_id, path=path)


def _fits(bbox: Box, mask: Rle) -> bool:
    """Return whether a box is that of a mask up to a pixel, by which tools differ."""
    left, top, width, height = bbox
    corners = np.array([left, top, left + width, top + height])
    return bool((np.abs(corners - np.array(mask.box_xyxy)) <= 1).all())


def _png_folder(file: Path) -> Path | None:
    """Return the folder of the PNGs, with the name of the JSON file; None if there is none."""
    folders = [parent / file.stem for parent in (file.parent, dataset_root(file))]
    return next((folder for folder in folders if folder.is_dir()), None)


def _image_locator(file: Path, root: Path | None) -> ImageLocator:
    """Return the locator of the images; they may have the names of the PNGs."""
    locator = image_locator(file, root)
    return ImageLocator(locator.root, [one for one in locator.folders if one != _png_folder(file)])


COCO_PANOPTIC = Format(
    name="COCO panoptic",
    expected="COCO panoptic JSON (with 'segments_info') and a folder of PNGs with the name of the .json file",
    splits=panoptic_splits,
    made_from="COCO",
)
