"""COCO JSON: the format of https://cocodataset.org/#format-data, object detection."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from querybox.data.findings import FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import SPLITS, Reader, by_split, split_name
from querybox.errors import DataError
from querybox.structures import Category

Id = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]


@dataclass(slots=True, kw_only=True)
class _Category:
    id: Id
    name: str


@dataclass(slots=True, kw_only=True)
class _Image:
    id: Id
    file_name: str
    width: Pixels | None = None
    height: Pixels | None = None


@dataclass(slots=True, kw_only=True)
class _Annotation:
    id: Id | None = None
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]  # x, y, width, height
    area: float | None = None
    iscrowd: bool | None = None


@dataclass(slots=True, kw_only=True)
class _File:
    categories: list[_Category]
    images: list[_Image]
    annotations: list[_Annotation]


_FILE = TypeAdapter(_File)


def coco_splits(folder: Path) -> dict[str, Reader]:
    """Return a reader for each split of a COCO folder.

    Supported layouts: `annotations/*.json`, where `instances*.json` take precedence;
    `<split>/_annotations.coco.json`; and `annotations.json`, `_annotations.coco.json` or `<split>.json` in the folder
    itself.
    """
    files = sorted((folder / "annotations").glob("*.json"))
    # The official folder also contains captions_*.json and person_keypoints_*.json.
    files = [file for file in files if file.name.startswith("instances")] or files
    files = files or [file for file in sorted(folder.glob("*.json")) if _looks_like_coco(file)]
    names = {file.stem: file for file in files}
    if not files:
        names = {file.parent.name: file for file in sorted(folder.glob("*/_annotations.coco.json"))}
    return by_split({name: partial(read_coco_dataset, file) for name, file in names.items()})


def _looks_like_coco(file: Path) -> bool:
    return split_name(file.stem) in SPLITS or file.stem in {"annotations", "_annotations.coco"}


def read_coco_dataset(path: Path) -> DetectionData:
    """Read a COCO file, of which at least one image file must exist.

    Raises:
        DataError: As for `read_coco`, or none of the image files exists.
    """
    return require_any_image(read_coco(path), image_folders(path))


def read_coco(path: Path) -> DetectionData:
    """Read the annotations of a COCO file. The image files need not exist. Problems are among the data's `findings`.

    Labels are assigned in ascending order of category ids. Image ids, category ids and names are kept, including gaps
    and 0. A missing `area` defaults to that of the box, a missing `iscrowd` to 0.

    Args:
        path: The JSON file. For the location of images see `image_folders`.

    Raises:
        DataError: The file is not COCO JSON.
    """
    content = _parse(path)
    findings = FindingCollector(path)
    _check_ids(content, findings)
    names = {category.id: category.name for category in content.categories}
    labels = {number: label for label, number in enumerate(sorted(names))}
    images = {image.id: image for image in content.images}
    objects = _group_by_image(content.annotations, labels, images, findings)
    folders = image_folders(path)
    records = (
        _record(image, index, objects[image.id], labels, folders, findings)
        for index, image in enumerate(content.images)
        if images[image.id] is image  # the last one of a repeated id
    )
    return DetectionData(
        source=path,
        categories=tuple(Category(id=number, name=names[number]) for number in labels),
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )


def image_folders(path: Path) -> list[Path]:
    """Return the folders that are searched for the images of the COCO file at `path`, in this order.

    `root` is the file's folder, or its parent if the folder is named `annotations`. The folders are
    `root/images/<split>`, `root/<split>`, `root/images` and `root`, where `<split>` is the file name without extension,
    or its part after the last `_` (`train2017`).
    """
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    names = dict.fromkeys((path.stem, path.stem.rpartition("_")[2]))
    folders = [root / "images" / name for name in names] + [root / name for name in names]
    return [folder for folder in (*folders, root / "images") if folder.is_dir()] + [root]


def _parse(path: Path) -> _File:
    try:
        return _FILE.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = re.sub(r"\.(\d+)", r"[\1]", ".".join(str(part) for part in first["loc"]))
        raise DataError(
            f"{path}: {place + ': ' if place else ''}{first['msg']}; expected COCO JSON, an object with 'images', "
            f"'annotations' and 'categories' ({error.error_count()} validation errors)"
        ) from None


def _check_ids(content: _File, findings: FindingCollector) -> None:
    kinds: dict[str, Sequence[_Category] | Sequence[_Image] | Sequence[_Annotation]] = {
        "category": content.categories,
        "image": content.images,
        "annotation": content.annotations,
    }
    for kind, items in kinds.items():
        counts = Counter(item.id for item in items)
        for number, count in counts.items():
            if number is not None and count > 1:
                findings.add(f"repeated_{kind}_id", f"{number} occurs {count} times")
    names = Counter(category.name for category in content.categories)
    for name, count in names.items():
        if count > 1:
            ids = [str(category.id) for category in content.categories if category.name == name]
            findings.add("repeated_category", f"{name!r} with ids {', '.join(ids)}")


def _group_by_image(
    annotations: Sequence[_Annotation],
    labels: Container[int],
    images: Container[int],
    findings: FindingCollector,
) -> defaultdict[int, list[tuple[int, _Annotation]]]:
    """Group annotations, each with its index in the file, by image; drop those of unknown images or categories."""
    objects: defaultdict[int, list[tuple[int, _Annotation]]] = defaultdict(list)
    for index, item in enumerate(annotations):
        if item.image_id not in images:
            findings.add("absent_image", f"{_location(index, item)} of image {item.image_id}")
        elif item.category_id not in labels:
            what = f"{_location(index, item)} has category id {item.category_id}"
            findings.add("unknown_category", what, image_id=item.image_id)
        else:
            objects[item.image_id].append((index, item))
    return objects


def _location(index: int, item: _Annotation) -> str:
    return f"annotations[{index}]" + ("" if item.id is None else f" (id {item.id})")


def _record(
    image: _Image,
    index: int,
    objects: Sequence[tuple[int, _Annotation]],
    labels: Mapping[int, int],
    folders: Sequence[Path],
    findings: FindingCollector,
) -> ImageRecord | None:
    file = _locate(image.file_name, folders)
    if file is None:
        what = f"images[{index}]: file_name {image.file_name!r} is outside the dataset's folder"
        findings.add("malformed", what, image_id=image.id)
        return None
    stated = None if image.height is None or image.width is None else (image.height, image.width)
    size = stated or read_size_or_note(file, image.id, findings)
    if size is None:
        return None
    items = [item for _, item in objects]
    for kind, field in ("no_area", "area"), ("no_iscrowd", "iscrowd"):
        for number, item in objects:
            if getattr(item, field) is None:
                findings.add(kind, _location(number, item), image_id=image.id, path=file)
    return make_record(
        id=image.id,
        path=file,
        width=size[1],
        height=size[0],
        boxes_xyxy=[(x, y, x + w, y + h) for x, y, w, h in (item.bbox for item in items)],
        labels=[labels[item.category_id] for item in items],
        crowd=[bool(item.iscrowd) for item in items],
        areas=[item.area for item in items],
        findings=findings,
        locate=lambda number: _location(*objects[number]),
        size_stated=stated is not None,
    )


def _locate(file_name: str, folders: Sequence[Path]) -> Path | None:
    name = PurePosixPath(file_name.replace("\\", "/"))
    if name.is_absolute() or PureWindowsPath(file_name).drive or ".." in name.parts or "\0" in file_name:
        return None
    existing = (folder / name for folder in folders if (folder / name).is_file())
    return next(existing, folders[0] / name)
