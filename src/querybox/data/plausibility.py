"""Find annotations that can be parsed but are probably not what was meant."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, islice, takewhile
from pathlib import Path

import numpy as np

from querybox.data.findings import Corners, DataFinding, FindingCollector
from querybox.data.records import ROUNDING, DetectionData, ImageRecord
from querybox.data.shards import ImageFile
from querybox.text import natural_key

_LARGE_IMAGE = 8
"""Side in pixels of images in which boxes of at most one pixel cannot be meant in pixels."""
_SEPARATORS = re.compile(r"[\s_-]+")
_MIN_OVERFLOWING = 3
"""Fewer overflowing boxes say nothing about the meaning of coordinates."""
_MIN_UNANNOTATED, _MIN_SHARE = 10, 0.1
"""Number and fraction of images without objects that are not likely to be the last ones by chance."""


def with_annotation_findings(data: DetectionData) -> DetectionData:
    """Return a dataset of any format, as it was read, with findings about its boxes, images and classes as a whole."""
    findings = FindingCollector(data.source, known=data.findings)
    if _are_normalized(data):
        findings.add("normalized_boxes", str(data.source), count=data.num_objects)
    else:
        for record in data.images:
            _note_subpixel_boxes(record, findings)
    if count := _num_overflowing(data):
        findings.add("xyxy_boxes", str(data.source), count=count)
    if count := _num_exchanged(data):
        findings.add("yx_boxes", str(data.source), count=count)
    if any(record.masks is not None for record in data.images):
        for record in data.images:
            _note_masks(record, findings)
    _note_repeated_images(data, findings)
    _note_repeated_objects(data.images, findings)
    _note_unannotated_images(data.images, findings)
    for category in data.categories:
        if not category.name.strip():
            findings.add("unnamed_category", f"id {category.id}")
    _note_similar_categories(data, findings)
    return replace(data, findings=findings.by_kind())


def with_shared_images(data: DetectionData, others: Mapping[str, Collection[ImageFile]]) -> DetectionData:
    """Return a split with a finding for each of its images that is in another one, too.

    Args:
        data: The split.
        others: The images of other splits, by their names. Copies are recognised by their content, but in shards.
    """
    findings = FindingCollector(data.source, known=data.findings)
    digest = cache(_digest)
    by_size: defaultdict[int, list[tuple[str, ImageFile]]] = defaultdict(list)
    for name, paths in others.items():
        for path in paths:
            by_size[_size(path)].append((name, path))
    for record in data.images:
        path, size = record.file, _size(record.file)
        where = [name for name, paths in others.items() if path in paths]
        if not where and size and (others_of_size := by_size.get(size)) and (content := digest(path)):
            same = (each for each in others_of_size if digest(each[1]) == content)
            where = [f"{name}, as {other}" for name, other in islice(same, 1)]
        if where:
            what = f"{path}: also in {', '.join(where)}"
            findings.add("shared_image", what, image_id=record.id, path=path)
    return replace(data, findings=findings.by_kind())


def _size(path: ImageFile) -> int:
    """Return the number of bytes of a file; 0 for one that is missing, or in a shard."""
    try:
        return path.stat().st_size if isinstance(path, Path) else 0
    except OSError:
        return 0


def _digest(path: Path) -> bytes | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _note_repeated_objects(images: Iterable[ImageRecord], findings: FindingCollector) -> None:
    for record in images:
        if count := repeated_objects(record):
            what = f"image {record.id}: {count} of {len(record.labels)}"
            findings.add("repeated_object", what, image_id=record.id, path=record.file, count=count)


def repeated_objects(record: ImageRecord) -> int:
    """Return the number of objects with the same box and class as an earlier one."""
    objects = ~record.crowd
    rows = [*zip(record.labels[objects].tolist(), *record.boxes_xyxy[objects].T.tolist(), strict=True)]
    return len(rows) - len(set(rows))


def _note_similar_categories(data: DetectionData, findings: FindingCollector) -> None:
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for category in data.categories:
        groups[_SEPARATORS.sub("", category.name).casefold()].add(category.name)
    for names in groups.values():
        if len(names) > 1:
            findings.add("similar_category", ", ".join(map(repr, sorted(names))), count=len(names))


def _are_normalized(data: DetectionData) -> bool:
    records = [record for record in data.images if len(record.labels)]
    large = any(min(record.width, record.height) >= _LARGE_IMAGE for record in records)
    return large and all(record.boxes_xyxy.max() <= 1.0 + ROUNDING for record in records)


def _note_subpixel_boxes(record: ImageRecord, findings: FindingCollector) -> None:
    sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
    small = np.flatnonzero((sides < 1.0 - ROUNDING).any(1))
    if len(small):
        width, height = sides[small[0]].tolist()
        what = f"image {record.id}: {width:g}x{height:g} pixels"
        findings.add("subpixel_box", what, image_id=record.id, path=record.file, count=len(small))


def _note_masks(record: ImageRecord, findings: FindingCollector) -> None:
    """Add findings for objects without a mask, for empty masks, and for masks and boxes of different places."""
    masks = record.masks or (None,) * len(record.labels)
    missing = sum(mask is None for mask, crowd in zip(masks, record.crowd.tolist(), strict=True) if not crowd)
    if missing:
        what = f"image {record.id}: {missing} of {len(masks)}"
        findings.add("no_mask", what, image_id=record.id, path=record.file, count=missing)
    around = {index: mask.box_xyxy or (0.0,) * 4 for index, mask in enumerate(masks) if mask is not None}
    objects = list(around)
    parts = np.array([*around.values()]).reshape(-1, 4).clip(0, [record.width, record.height] * 2)
    empty = (parts[:, :2] == parts[:, 2:]).any(1)
    for row in np.flatnonzero(empty):
        what = f"image {record.id}, object {objects[row] + 1}"
        findings.add("empty_mask", what, image_id=record.id, path=record.file)
    boxes = record.boxes_xyxy[objects]
    shared = np.minimum(parts[:, 2:], boxes[:, 2:]) - np.maximum(parts[:, :2], boxes[:, :2])
    misplaced = 2 * shared.clip(min=0).prod(1) < (parts[:, 2:] - parts[:, :2]).prod(1)
    for row in np.flatnonzero(misplaced & ~empty):
        corners = [", ".join(f"{side:g}" for side in sides.tolist()) for sides in (parts[row], boxes[row])]
        what = f"image {record.id}, object {objects[row] + 1}: mask within {corners[0]}, box {corners[1]}"
        findings.add("misplaced_mask", what, image_id=record.id, path=record.file)


def _num_overflowing(data: DetectionData) -> int:
    """Return how many boxes overflow to the right or below, if they are as if x2, y2 had been read as width, height.

    With that mistake, x + width and y + height are at least twice x and y, and most boxes overflow.
    """
    count = 0.0
    for finding in (one for one in data.findings if one.kind == "clipped_box"):
        for box, (height, width) in _faulty_boxes(finding):
            x0, y0, x1, y1 = box
            if x1 < 2 * x0 or y1 < 2 * y0:
                return 0
            # The boxes without a place, of which there are too many, are like the others.
            count += (x1 > width or y1 > height) * finding.count / len(finding.places)
    return round(count) if count >= _MIN_OVERFLOWING and 2 * count > data.num_objects else 0


def _num_exchanged(data: DetectionData) -> int:
    """Return how many boxes are not inside their image, if all of the data are with x and y exchanged.

    Some have to be outside it altogether, where nobody draws a box.
    """
    faulty = {one.kind: one for one in data.findings if one.kind in ("clipped_box", "outside_box")}
    if "outside_box" not in faulty or faulty["outside_box"].count < _MIN_OVERFLOWING:
        return 0
    inside = all(
        min(x0, y0) >= -ROUNDING and x1 <= height + ROUNDING and y1 <= width + ROUNDING
        for finding in faulty.values()
        for (x0, y0, x1, y1), (height, width) in _faulty_boxes(finding)
    ) and all(
        (record.boxes_xyxy[:, 2:] <= (record.height + ROUNDING, record.width + ROUNDING)).all()
        for record in data.images
    )
    return sum(one.count for one in faulty.values()) if inside else 0


def _faulty_boxes(finding: DataFinding) -> list[tuple[Corners, tuple[int, int]]]:
    """Return the boxes of a finding, as given in the file, with the (height, width) of their images."""
    return [
        (place.box_xyxy, place.size)
        for place in finding.places
        if place.box_xyxy is not None and place.size is not None
    ]


def _note_unannotated_images(images: Sequence[ImageRecord], findings: FindingCollector) -> None:
    """Add findings for images without objects that are all of a folder, the last ones by name, or most of all."""
    folders: defaultdict[Path, list[ImageRecord]] = defaultdict(list)
    for record in images:
        folders[record.path.parent].append(record)
    empty = [folder for folder, records in folders.items() if not any(map(_has_objects, records))]
    if len(empty) == len(folders):
        return
    for folder in empty:
        if len(folders[folder]) >= _MIN_UNANNOTATED:
            count = len(folders.pop(folder))
            findings.add("unannotated_images", f"{folder}: all {count:,} images", count=count)
    rest = [*chain(*folders.values())]
    count = sum(not _has_objects(record) for record in rest)
    if count < max(_MIN_UNANNOTATED, _MIN_SHARE * len(rest)):
        return
    rest.sort(key=lambda record: natural_key(record.path))
    last = [*takewhile(lambda record: not _has_objects(record), reversed(rest))]
    if len(last) >= max(_MIN_UNANNOTATED, _MIN_SHARE * len(rest)):
        what = f"the last {len(last):,} of {len(rest):,} images, from {last[-1].path} on"
        findings.add("unannotated_images", what, count=len(last))
    elif count > len(rest) / 2:
        findings.add("unannotated_images", f"{count:,} of {len(rest):,} images", count=count)


def _has_objects(record: ImageRecord) -> bool:
    return len(record.labels) > 0


def _note_repeated_images(data: DetectionData, findings: FindingCollector) -> None:
    ids: defaultdict[ImageFile, list[int]] = defaultdict(list)
    for record in data.images:
        ids[record.file].append(record.id)
    for path, numbers in ids.items():
        if len(numbers) > 1:
            what = f"{path}: images {', '.join(map(str, numbers))}"
            findings.add("repeated_image", what, image_id=numbers[0], path=path, count=len(numbers))
