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

from querybox.data.findings import Findings
from querybox.data.image import MAX_PIXELS
from querybox.data.records import DetectionData, ImageRecord, require_images, size_in_header, sound_record
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
    """Find the COCO files of a dataset folder, by split.

    Known layouts: `annotations/*.json`, of which `instances*.json` are meant where there are any;
    `<split>/_annotations.coco.json`; in the folder itself `annotations.json`, `_annotations.coco.json` and
    `<split>.json`.
    """
    files = sorted((folder / "annotations").glob("*.json"))
    # The official folder also holds captions_*.json and person_keypoints_*.json.
    files = [file for file in files if file.name.startswith("instances")] or files
    files = files or [file for file in sorted(folder.glob("*.json")) if _looks_like_coco(file)]
    names = {file.stem: file for file in files}
    if not files:
        names = {file.parent.name: file for file in sorted(folder.glob("*/_annotations.coco.json"))}
    return by_split({name: partial(read_coco_dataset, file) for name, file in names.items()})


def _looks_like_coco(file: Path) -> bool:
    return split_name(file.stem) in SPLITS or file.stem in {"annotations", "_annotations.coco"}


def read_coco_dataset(path: Path) -> DetectionData:
    """Read a COCO file whose images must be there.

    Raises:
        DataError: As `read_coco`, or none of the image files exists.
    """
    return require_images(read_coco(path), image_folders(path))


def read_coco(path: Path) -> DetectionData:
    """Read the annotations of a COCO file. The image files need not exist. Faults are among the data's `findings`.

    Labels follow the category ids in ascending order. Image ids, category ids and names stay as they are, gaps
    and 0 included. A missing `area` is that of the box; a missing `iscrowd` is 0.

    Args:
        path: The JSON file. Image folders are looked for around it, see `image_folders`.

    Raises:
        DataError: The file is not COCO JSON.
    """
    content = _parse(path)
    findings = Findings(path)
    _check_ids(content, findings)
    names = {category.id: category.name for category in content.categories}
    labels = {number: label for label, number in enumerate(sorted(names))}
    listed_images = {image.id: image for image in content.images}
    objects = _by_image(content.annotations, labels, listed_images, findings)
    folders = image_folders(path)
    records = (
        _record(image, place, objects[image.id], labels, folders, findings)
        for place, image in enumerate(content.images)
        if listed_images[image.id] is image  # of a repeated id the last
    )
    return DetectionData(
        source=path,
        categories=tuple(Category(id=number, name=names[number]) for number in labels),
        images=tuple(record for record in records if record is not None),
        findings=findings.all(),
    )


def image_folders(path: Path) -> list[Path]:
    """Folders in which the images of the COCO file at `path` are looked for, in this order.

    With `root` the file's folder, or its parent where that is named `annotations`: `root/images/<split>`,
    `root/<split>`, `root/images`, `root`, for `<split>` the file's name, its last part after `_` (`train2017`).
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
            f"'annotations' and 'categories' ({error.error_count()} faults of form)"
        ) from None


def _check_ids(content: _File, findings: Findings) -> None:
    kinds: dict[str, Sequence[_Category] | Sequence[_Image] | Sequence[_Annotation]] = {
        "category": content.categories,
        "image": content.images,
        "annotation": content.annotations,
    }
    for kind, items in kinds.items():
        counts = Counter(item.id for item in items)
        for number, count in counts.items():
            if number is not None and count > 1:
                findings.add(f"repeated_{kind}_id", f"{number} stands there {count} times")
    names = Counter(category.name for category in content.categories)
    for name, count in names.items():
        if count > 1:
            ids = [str(category.id) for category in content.categories if category.name == name]
            findings.add("repeated_category", f"{name!r} with ids {', '.join(ids)}")


def _by_image(
    annotations: Sequence[_Annotation],
    labels: Container[int],
    images: Container[int],
    findings: Findings,
) -> defaultdict[int, list[tuple[int, _Annotation]]]:
    """Sort annotations, each with its place in the file, by their image; leave out those that cannot be placed."""
    objects: defaultdict[int, list[tuple[int, _Annotation]]] = defaultdict(list)
    for place, item in enumerate(annotations):
        if item.image_id not in images:
            findings.add("absent_image", f"{_name(place, item)} of image {item.image_id}")
        elif item.category_id not in labels:
            what = f"{_name(place, item)} has category id {item.category_id}"
            findings.add("unknown_category", what, image_id=item.image_id)
        else:
            objects[item.image_id].append((place, item))
    return objects


def _name(place: int, item: _Annotation) -> str:
    return f"annotations[{place}]" + ("" if item.id is None else f" (id {item.id})")


def _record(
    image: _Image,
    place: int,
    objects: Sequence[tuple[int, _Annotation]],
    labels: Mapping[int, int],
    folders: Sequence[Path],
    findings: Findings,
) -> ImageRecord | None:
    file = _locate(image.file_name, folders)
    if file is None:
        what = f"images[{place}]: file_name {image.file_name!r} leaves the dataset's folder"
        findings.add("malformed", what, image_id=image.id)
        return None
    stated = None if image.height is None or image.width is None else (image.height, image.width)
    size = stated or size_in_header(file, image.id, findings)
    if size is None:
        return None
    items = [item for _, item in objects]
    for kind, field in ("no_area", "area"), ("no_iscrowd", "iscrowd"):
        for number, item in objects:
            if getattr(item, field) is None:
                findings.add(kind, _name(number, item), image_id=image.id, path=file)
    return sound_record(
        id=image.id,
        path=file,
        width=size[1],
        height=size[0],
        boxes_xyxy=[(x, y, x + w, y + h) for x, y, w, h in (item.bbox for item in items)],
        labels=[labels[item.category_id] for item in items],
        crowd=[bool(item.iscrowd) for item in items],
        areas=[item.area for item in items],
        findings=findings,
        where=lambda number: _name(*objects[number]),
        size_stated=stated is not None,
    )


def _locate(file_name: str, folders: Sequence[Path]) -> Path | None:
    name = PurePosixPath(file_name.replace("\\", "/"))
    if name.is_absolute() or PureWindowsPath(file_name).drive or ".." in name.parts or "\0" in file_name:
        return None
    found = (folder / name for folder in folders if (folder / name).is_file())
    return next(found, folders[0] / name)
