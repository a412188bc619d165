"""COCO JSON: the format of https://cocodataset.org/#format-data, object detection."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from querybox.data.image import MAX_PIXELS, read_size
from querybox.data.records import DetectionData, ImageRecord, finish, listed, require_images, sound_record
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
    iscrowd: bool = False


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
    """Read a COCO file whose images must all be there.

    Raises:
        DataError: As `read_coco`, or image files are missing.
    """
    return require_images(read_coco(path), image_folders(path))


def read_coco(path: Path) -> DetectionData:
    """Read the annotations of a COCO file. The image files need not exist.

    Labels follow the category ids in ascending order. Image ids, category ids and names stay as they are, gaps
    and 0 included. A missing `area` is that of the box; a missing `iscrowd` is 0.

    Args:
        path: The JSON file. Image folders are looked for around it, see `image_folders`.

    Raises:
        DataError: The file is not COCO JSON, ids repeat, a category is unknown, or a `file_name` leaves the folder.
    """
    content = _parse(path)
    _check_ids(path, content)
    names = {category.id: category.name for category in content.categories}
    labels = {number: label for label, number in enumerate(sorted(names))}
    _check_categories(path, content.annotations, labels)

    objects: dict[int, list[_Annotation]] = defaultdict(list)
    for annotation in content.annotations:
        objects[annotation.image_id].append(annotation)
    folders = image_folders(path)
    faults: Counter[str] = Counter()
    images = [
        _record(path, image, objects.pop(image.id, []), labels, folders, faults) for image in content.images
    ]
    faults["absent_image"] += sum(map(len, objects.values()))
    return finish(path, [Category(id=number, name=names[number]) for number in labels], images, faults)


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


def _check_ids(path: Path, content: _File) -> None:
    kinds: dict[str, Iterable[int | None]] = {
        "category": (category.id for category in content.categories),
        "image": (image.id for image in content.images),
        "annotation": (annotation.id for annotation in content.annotations),
    }
    for kind, ids in kinds.items():
        repeated = [number for number, count in Counter(ids).items() if number is not None and count > 1]
        if repeated:
            raise DataError(f"{path}: {kind} ids must be unique, these repeat: {listed(repeated)}")


def _check_categories(path: Path, annotations: Sequence[_Annotation], labels: dict[int, int]) -> None:
    unknown = sorted({annotation.category_id for annotation in annotations} - labels.keys())
    if unknown:
        raise DataError(
            f"{path}: annotations have category ids that 'categories' lacks: {listed(unknown)}; "
            f"it has {listed(list(labels))}"
        )


def _record(
    path: Path,
    image: _Image,
    objects: Sequence[_Annotation],
    labels: dict[int, int],
    folders: Sequence[Path],
    faults: Counter[str],
) -> ImageRecord:
    file = _locate(path, image.file_name, folders)
    if image.height is None or image.width is None:
        height, width = read_size(file)
    else:
        height, width = image.height, image.width
    corners = [(x, y, x + w, y + h) for x, y, w, h in (item.bbox for item in objects)]
    return sound_record(
        id=image.id,
        path=file,
        width=width,
        height=height,
        boxes_xyxy=corners,
        labels=[labels[item.category_id] for item in objects],
        crowd=[item.iscrowd for item in objects],
        areas=[item.area for item in objects],
        faults=faults,
    )


def _locate(path: Path, file_name: str, folders: Sequence[Path]) -> Path:
    name = PurePosixPath(file_name.replace("\\", "/"))
    if name.is_absolute() or PureWindowsPath(file_name).drive or ".." in name.parts or "\0" in file_name:
        raise DataError(
            f"{path}: file_name {file_name!r} leaves the dataset's folder; expected a path inside it"
        )
    found = (folder / name for folder in folders if (folder / name).is_file())
    return next(found, folders[0] / name)
