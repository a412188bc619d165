"""YOLO text: for every image a file of lines `class cx cy width height`, in 0-1 of the image.

The label file of `images/a/b.jpg` is `labels/a/b.txt`, or `b.txt` beside the image where no folder is called `images`.
An image without a label file, or with an empty one, is a negative.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from querybox.data.findings import Findings
from querybox.data.image import image_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    require_images,
    size_in_header,
    sound_record,
)
from querybox.data.splits import Reader, by_split
from querybox.data.text import read_lines
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.structures import Category
from querybox.text import listed

Names = Mapping[int, str]

# Exporters round; the boxes are cut to the image in any case.
_ROUNDING = 1e-3


class _DataFile(BaseModel):
    """The `data.yaml` of a dataset; other keys are for the tools that wrote them."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be called 7

    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    names: dict[int, str] | list[str]


def yolo_splits(folder: Path) -> dict[str, Reader]:
    """Find the image folders of a YOLO dataset, by split.

    Known layouts: a `data.yaml` or `dataset.yaml`; `images/<split>` and `labels/<split>`; `<split>/images` and
    `<split>/labels`; `images` and `labels`, which is the split `all`. Without a yaml file the class names are the
    lines of `classes.txt`.
    """
    files = (folder / name for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"))
    if file := next((file for file in files if file.is_file()), None):
        return yolo_file_splits(file)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        inner = [path for path in sorted((folder / "labels").iterdir()) if path.is_dir()]
        found = {path.name: folder / "images" / path.name for path in inner} or {"all": folder / "images"}
    else:
        found = {path.parent.name: path.parent / "images" for path in sorted(folder.glob("*/labels"))}
    return by_split({name: partial(_read_folder, folder, images) for name, images in found.items()})


def yolo_file_splits(file: Path) -> dict[str, Reader]:
    """Return the splits that a `data.yaml` names.

    Raises:
        DataError: It is no such file.
    """
    content = _parse(file)
    names = content.names if isinstance(content.names, dict) else dict(enumerate(content.names))
    splits = {"train": content.train, "val": content.val, "test": content.test}
    if not any(splits.values()):
        raise DataError(f"{file}: names no images; add image folders as 'train', 'val' or 'test'")
    return {
        split: partial(_read_entries, file, content.path, [where] if isinstance(where, str) else where, names)
        for split, where in splits.items()
        if where
    }


def read_yolo(source: Path, images: Sequence[Path], names: Names) -> DetectionData:
    """Read the labels of `images`.

    Category ids are the class numbers of the label files, gaps included. Image ids are 1, 2 ... in order. Sizes come
    from the images. Faults of lines and images are among the data's `findings`.

    Args:
        source: What is read, for messages.
        images: The image files.
        names: Class names by number.

    Raises:
        DataError: There are no images, or some are listed twice.
    """
    if not images:
        raise DataError(f"{source}: no images; a dataset needs at least one")
    repeated = [path for path, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: images must be listed once, these repeat: {listed(repeated)}")
    findings = Findings(source)
    labels = {number: label for label, number in enumerate(sorted(names))}
    for name, count in Counter(names.values()).items():
        if count > 1:
            findings.add("repeated_category", f"{name!r} is the name of {count} classes")
    records = [_record(number, path, labels, findings) for number, path in enumerate(images, start=1)]
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=number, name=names[number]) for number in labels),
        images=tuple(record for record in records if record is not None),
        findings=findings.all(),
    )
    return require_images(data, list(dict.fromkeys(path.parent for path in images))[:3])


def _parse(file: Path) -> _DataFile:
    try:
        return _DataFile.model_validate(yaml.load(file.read_bytes(), Loader))  # noqa: S506 - a safe loader
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = f"{place}: {first['msg']}" if place else first["msg"]
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    raise DataError(f"{file}: {problem}; expected YAML with 'names', and image folders in 'train' and 'val'")


def _read_entries(file: Path, root: str | None, entries: Sequence[str], names: Names) -> DetectionData:
    base = file.parent / (root or "")
    if not base.is_dir():  # `path` often is that of another machine
        base = file.parent
    _require_inside(file, file, base)
    images = [image for entry in entries for image in _images_of(file, base, entry)]
    return read_yolo(file, images, names)


def _images_of(file: Path, base: Path, entry: str) -> list[Path]:
    # Roboflow writes ../train/images for the folder train/images beside the file.
    candidates = [base / entry, base / entry.removeprefix("../")]
    found = [path for path in candidates if path.exists()]
    if not found:
        raise DataError(
            f"{file}: {entry!r} does not exist; searched {listed(candidates)}; correct the entry or 'path'"
        )
    place = next((path for path in found if _is_inside(path, file.parent)), found[0])
    _require_inside(file, file, place)
    if place.is_dir():
        return image_files(place)
    images = [base / line for line in read_lines(place) if line]
    for image in images:
        _require_inside(place, file, image)
    return images


def _require_inside(where: Path, file: Path, path: Path) -> None:
    if not _is_inside(path, file.parent):
        raise DataError(
            f"{where}: '{path}' leaves the dataset's folder, that of {file.name}; put {file.name} into the folder that "
            "holds all images"
        )


def _is_inside(path: Path, folder: Path) -> bool:
    """Tell by the text alone: what a link leads to is its owner's choice, not that of whoever wrote the dataset."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100 - links stay


def _read_folder(root: Path, images: Path) -> DetectionData:
    files = (root / "classes.txt", root / "labels" / "classes.txt")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(
            f"{root}: class names not found; add a classes.txt with one name a line, or a data.yaml"
        )
    names = dict(enumerate(line for line in read_lines(file) if line))
    return read_yolo(images, image_files(images), names)


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _record(number: int, image: Path, labels: Mapping[int, int], findings: Findings) -> ImageRecord | None:
    size = size_in_header(image, number, findings)
    if size is None:
        return None
    height, width = size
    file = _label_file(image)
    rows = [_row(place, line, labels, findings, number) for place, line in _lines(file, findings)]
    found = [row for row in rows if row is not None]
    return sound_record(
        id=number,
        path=image,
        width=width,
        height=height,
        boxes_xyxy=[
            ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            for _, _, (cx, cy, w, h) in found
        ],
        labels=[label for _, label, _ in found],
        findings=findings,
        where=lambda place: found[place][0],
        size_stated=False,
    )


def _lines(file: Path, findings: Findings) -> list[tuple[str, str]]:
    """Return the lines of a label file that are not empty, each with its place."""
    try:
        lines = read_lines(file) if file.is_file() else []
    except DataError as error:
        findings.add("malformed", str(error))
        return []
    return [(f"{file}, line {row}", line) for row, line in enumerate(lines, start=1) if line]


def _row(
    where: str, line: str, labels: Mapping[int, int], findings: Findings, image_id: int
) -> tuple[str, int, list[float]] | None:
    """Return a line's place, label and box; None, and why, where it has none."""
    fields = line.split()
    try:
        category, box = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        what = f"{where}: got {line[:80]!r}; expected numbers: class cx cy width height"
    else:
        if len(box) != 4:
            what = f"{where}: has {len(fields)} values; expected 5: class cx cy width height (polygons are no boxes)"
        elif any(math.isfinite(value) and not -_ROUNDING <= value <= 1 + _ROUNDING for value in box):
            what = f"{where}: box {box} is outside 0-1; divide pixels by the image's width and height"
        elif category not in labels:
            what = f"{where}: class {category}; the dataset names {listed(list(labels))}"
            findings.add("unknown_category", what, image_id=image_id)
            return None
        else:
            return where, labels[category], box
    findings.add("malformed", what, image_id=image_id)
    return None
