"""YOLO text: a file per image with lines `class cx cy width height`, in 0-1 of the image.

The label file of `images/a/b.jpg` is `labels/a/b.txt`, or `b.txt` beside the image if no parent is named `images`. An
image without a label file, or with an empty one, is a negative example.
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

from querybox.data.findings import FindingCollector
from querybox.data.locate import image_files
from querybox.data.records import (
    DetectionData,
    ImageRecord,
    make_record,
    read_size_or_note,
    require_any_image,
)
from querybox.data.splits import Format, Reader, by_split
from querybox.data.text import read_lines
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.structures import Category
from querybox.text import listed

Names = Mapping[int, str]

# Exporters round; boxes are clipped to the image anyway.
_ROUNDING = 1e-3


class _DataFile(BaseModel):
    """The `data.yaml` of a dataset; other keys are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be named 7

    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    test: str | list[str] | None = None
    names: dict[int, str] | list[str]


def yolo_splits(path: Path) -> dict[str, Reader]:
    """Return a reader for each split of a YOLO `data.yaml` or folder.

    Supported layouts: a `data.yaml` or `dataset.yaml`; `images/<split>` and `labels/<split>`; `<split>/images` and
    `<split>/labels`; `images` and `labels`, whose only split is `all`. Without a YAML file, `classes.txt` lists the
    class names, one per line.
    """
    if path.is_file():
        return yolo_file_splits(path) if path.suffix.lower() in {".yaml", ".yml"} else {}
    folder = path
    files = (folder / name for name in ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml"))
    if file := next((file for file in files if file.is_file()), None):
        return yolo_file_splits(file)
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        subfolders = [path for path in sorted((folder / "labels").iterdir()) if path.is_dir()]
        splits = {path.name: folder / "images" / path.name for path in subfolders} or {
            "all": folder / "images"
        }
    else:
        splits = {path.parent.name: path.parent / "images" for path in sorted(folder.glob("*/labels"))}
    return by_split({name: partial(_read_folder, folder, images) for name, images in splits.items()})


def yolo_file_splits(file: Path) -> dict[str, Reader]:
    """Return a reader for each split in a `data.yaml`.

    Raises:
        DataError: The file is not a valid `data.yaml`.
    """
    content = _parse(file)
    names = content.names if isinstance(content.names, dict) else dict(enumerate(content.names))
    splits = {"train": content.train, "val": content.val, "test": content.test}
    if not any(splits.values()):
        raise DataError(f"{file}: lists no images; add image folders as 'train', 'val' or 'test'")
    return {
        split: partial(
            _read_entries, file, content.path, [entries] if isinstance(entries, str) else entries, names
        )
        for split, entries in splits.items()
        if entries
    }


def read_yolo(source: Path, images: Sequence[Path], names: Names) -> DetectionData:
    """Read the labels of `images`.

    Category ids are the class numbers of the label files, including gaps. Image ids are 1, 2 ... in order. Sizes are
    read from the images. Problems of lines and images are among the data's `findings`.

    Args:
        source: The dataset, for messages.
        images: The image files.
        names: Class names by class number.

    Raises:
        DataError: There are no images, or some are listed twice.
    """
    if not images:
        raise DataError(f"{source}: no images; a dataset needs at least one")
    repeated = [path for path, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(f"{source}: images must be listed once; repeated: {listed(repeated)}")
    findings = FindingCollector(source)
    labels = {number: label for label, number in enumerate(sorted(names))}
    for name, count in Counter(names.values()).items():
        if count > 1:
            findings.add("repeated_category", f"{name!r} is the name of {count} classes")
    records = [_record(number, path, labels, findings) for number, path in enumerate(images, start=1)]
    data = DetectionData(
        source=source,
        categories=tuple(Category(id=number, name=names[number]) for number in labels),
        images=tuple(record for record in records if record is not None),
        findings=findings.by_kind(),
    )
    return require_any_image(data, list(dict.fromkeys(path.parent for path in images))[:3])


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
    if not base.is_dir():  # often a path on another machine
        base = file.parent
    _require_inside(file, file, base)
    images = [image for entry in entries for image in _images_of(file, base, entry)]
    return read_yolo(file, images, names)


def _images_of(file: Path, base: Path, entry: str) -> list[Path]:
    # Roboflow writes ../train/images for a folder train/images next to the file.
    candidates = [base / entry, base / entry.removeprefix("../")]
    existing = [path for path in candidates if path.exists()]
    if not existing:
        raise DataError(
            f"{file}: {entry!r} does not exist; searched {listed(candidates)}; correct the entry or 'path'"
        )
    location = next((path for path in existing if _is_inside(path, file.parent)), existing[0])
    _require_inside(file, file, location)
    if location.is_dir():
        return image_files(location)
    images = [base / line for line in read_lines(location) if line]
    for image in images:
        _require_inside(location, file, image)
    return images


def _require_inside(source: Path, file: Path, path: Path) -> None:
    if not _is_inside(path, file.parent):
        raise DataError(
            f"{source}: '{path}' is outside the dataset's folder, which is that of {file.name}; put {file.name} into "
            "the folder that contains all images"
        )


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder, without resolving links, which the user may have put there."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100 - does not resolve links


def _read_folder(root: Path, images: Path) -> DetectionData:
    files = (root / "classes.txt", root / "labels" / "classes.txt")
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(
            f"{root}: class names not found; add a classes.txt with one name per line, or a data.yaml"
        )
    names = dict(enumerate(line for line in read_lines(file) if line))
    return read_yolo(images, image_files(images), names)


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _record(
    number: int, image: Path, labels: Mapping[int, int], findings: FindingCollector
) -> ImageRecord | None:
    size = read_size_or_note(image, number, findings)
    if size is None:
        return None
    height, width = size
    file = _label_file(image)
    parsed = [_row(where, line, labels, findings, number) for where, line in _lines(file, findings)]
    rows = [row for row in parsed if row is not None]
    return make_record(
        id=number,
        path=image,
        width=width,
        height=height,
        boxes_xyxy=[
            ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            for _, _, (cx, cy, w, h) in rows
        ],
        labels=[label for _, label, _ in rows],
        findings=findings,
        locate=lambda index: rows[index][0],
        size_stated=False,
    )


def _lines(file: Path, findings: FindingCollector) -> list[tuple[str, str]]:
    """Return the non-empty lines of a label file, each with its location."""
    try:
        lines = read_lines(file) if file.is_file() else []
    except DataError as error:
        findings.add("malformed", str(error))
        return []
    return [(f"{file}, line {row}", line) for row, line in enumerate(lines, start=1) if line]


def _row(
    where: str, line: str, labels: Mapping[int, int], findings: FindingCollector, image_id: int
) -> tuple[str, int, list[float]] | None:
    """Return the location, label and box of a line; if it is invalid, add a finding and return None."""
    fields = line.split()
    try:
        category, box = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        what = f"{where}: got {line[:80]!r}; expected numbers: class cx cy width height"
    else:
        if len(box) != 4:
            what = f"{where}: has {len(fields)} values; expected 5: class cx cy width height (no polygons)"
        elif any(math.isfinite(value) and not -_ROUNDING <= value <= 1 + _ROUNDING for value in box):
            what = f"{where}: box {box} is outside 0-1; divide pixels by the image's width and height"
        elif category not in labels:
            what = f"{where}: class {category}; the dataset defines {listed(list(labels))}"
            findings.add("unknown_category", what, image_id=image_id)
            return None
        else:
            return where, labels[category], box
    findings.add("malformed", what, image_id=image_id)
    return None


YOLO = Format(
    name="YOLO", expected="YOLO: a data.yaml, or a folder with images/ and labels/", splits=yolo_splits
)
