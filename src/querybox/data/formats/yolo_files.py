"""The files that describe a YOLO dataset: `data.yaml` of Ultralytics, and `obj.data` of Darknet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from querybox.data.class_names import names_by_number, read_names
from querybox.data.findings import DataFinding, FindingCollector
from querybox.data.formats.yolo_labels import label_folder_of, read_yolo
from querybox.data.formats.yolo_lines import Names
from querybox.data.locate import ImageLocator, image_files
from querybox.data.parsing import Whole, validation_problem
from querybox.data.records import DetectionData
from querybox.data.splits import SPLITS, Reader, split_name
from querybox.data.text import read_lines, read_start, read_text
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.text import listed

SUFFIXES = frozenset({".yaml", ".yml", ".data"})

_RECOGNISED = 2**16
"""Number of bytes at the beginning of a file by which it is recognised."""


class _DataFile(BaseModel):
    """The keys of a `data.yaml` that are used; `valid` is another name of `val`."""

    model_config = ConfigDict(coerce_numbers_to_str=True, extra="allow")  # a class may be named 7

    path: str | None = None
    train: str | list[str] | None = None
    val: str | list[str] | None = None
    valid: str | list[str] | None = None
    test: str | list[str] | None = None
    names: dict[Whole, str] | list[str]
    nc: Whole | None = None
    kpt_shape: list[Whole] | None = None


class _Dataset(NamedTuple):
    """What a file says about a dataset."""

    file: Path
    base: Path
    """The folder that entries are relative to."""
    splits: Mapping[str, Sequence[str]]
    """Folders and lists of images of each split."""
    names: Names
    num_classes: int | None
    has_keypoints: bool
    unused: Sequence[str]
    """Keys that are not used."""


def is_yolo_file(file: Path) -> bool:
    """Return whether a file looks like a `data.yaml` or `obj.data`, by the keys at its beginning."""
    if file.suffix.lower() not in SUFFIXES:
        return False
    content = read_start(file, _RECOGNISED)
    separator = b"=" if file.suffix.lower() == ".data" else b":"
    keys = {line.partition(separator)[0].strip() for line in content.splitlines() if separator in line}
    return b"names" in keys and not keys.isdisjoint({b"train", b"val", b"valid", b"test"})


def yolo_file_splits(file: Path) -> dict[str, Reader]:
    """Return a reader for each split in a `data.yaml` or `obj.data`.

    Raises:
        DataError: The file is malformed.
    """
    findings = FindingCollector(file)
    dataset = _read_darknet(file, findings) if file.suffix.lower() == ".data" else _read_yaml(file, findings)
    if not dataset.splits:
        raise DataError(f"{file}: lists no images; add image folders as 'train', 'val' or 'test'")
    splits = dict(dataset.splits)
    if "test" in splits and len(splits) > 1 and not _exists(dataset, splits["test"]):
        del splits["test"]
        findings.add("ignored_key", f"{file}: test, which does not exist")
    known = findings.by_kind()
    return {name: partial(_read_split, dataset, entries, known) for name, entries in splits.items()}


def _exists(dataset: _Dataset, entries: Sequence[str]) -> bool:
    """Return whether one of the entries exists. Roboflow names a test split in every file."""
    for entry in entries:
        with suppress(DataError):
            _existing(dataset.file, dataset.base, entry, FindingCollector(dataset.file))
            return True
    return False


def _read_yaml(file: Path, findings: FindingCollector) -> _Dataset:
    try:
        text = read_text(file, findings)
        content = _DataFile.model_validate(yaml.load(text, Loader))  # noqa: S506 - a safe loader
    except ValidationError as error:
        problem = validation_problem(error)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
    else:
        base = file.parent / (content.path or "")
        splits = {"train": content.train, "val": content.val or content.valid, "test": content.test}
        unused = ["valid"] if content.val and content.valid else []
        return _Dataset(
            file=file,
            base=base if base.is_dir() else file.parent,  # often a path on another machine
            splits=_as_lists(splits),
            names=names_by_number(content.names),
            num_classes=content.nc,
            has_keypoints=content.kpt_shape is not None,
            unused=[*unused, *(content.model_extra or {})],
        )
    raise DataError(f"{file}: {problem}; expected YAML with 'names', and image folders in 'train' and 'val'")


def _read_darknet(file: Path, findings: FindingCollector) -> _Dataset:
    pairs = (line.partition("=") for line in read_lines(file, findings) if "=" in line and line[0] != "#")
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    names_file = _existing(file, file.parent, values.get("names", ""), findings)
    _require_inside(file, names_file)
    if not names_file.is_file():
        raise DataError(
            f"{file}: class names not found; expected 'names = ' with a file of one name per line"
        )
    splits = {
        "train": values.get("train"),
        "val": values.get("val") or values.get("valid"),
        "test": values.get("test"),
    }
    classes = values.get("classes", "")
    used = {"names", "classes", "train", "val", "valid", "test"}
    return _Dataset(
        file=file,
        base=file.parent,
        splits=_as_lists(splits),
        names=read_names(names_file, findings),
        num_classes=int(classes) if classes.isdecimal() else None,
        has_keypoints=False,
        unused=[key for key in values if key not in used],
    )


def _as_lists(splits: Mapping[str, str | list[str] | None]) -> dict[str, Sequence[str]]:
    return {name: [value] if isinstance(value, str) else value for name, value in splits.items() if value}


def _read_split(dataset: _Dataset, entries: Sequence[str], known: Sequence[DataFinding]) -> DetectionData:
    file = dataset.file
    findings = FindingCollector(file, known)
    _require_inside(file, dataset.base)
    if dataset.num_classes not in {None, len(dataset.names)}:
        what = f"{file}: {dataset.num_classes}, but there are {len(dataset.names)} names"
        findings.add("num_classes_mismatch", what)
    for key in dataset.unused:
        findings.add("ignored_key", f"{file}: {key}")
    locations = [_existing(file, dataset.base, entry, findings) for entry in entries]
    for location in locations:
        _require_inside(file, location)
    images = [image for location in locations for image in _images(location, dataset, findings)]
    images_by_id = {number: image for number, image in enumerate(images, start=1) if image is not None}
    folder = locations[0] if len(locations) == 1 and locations[0].is_dir() else None
    return read_yolo(
        file,
        images_by_id,
        dataset.names,
        findings,
        label_folder=label_folder_of(folder) if folder else None,
        has_keypoints=dataset.has_keypoints,
    )


def _existing(file: Path, base: Path, entry: str, findings: FindingCollector) -> Path:
    """Return the path of an entry; for one on another machine, the path with the same ending in the file's folder.

    Raises:
        DataError: There is none.
    """
    entry = entry.replace("\\", "/")
    # Roboflow writes ../train/images for a folder train/images next to the file.
    candidates = [base / entry, base / entry.removeprefix("../")]
    existing = [path for path in candidates if path.exists()]
    if existing:
        return next((path for path in existing if _is_inside(path, file.parent)), existing[0])
    parts = Path(entry).parts
    named = [number for number, part in enumerate(parts) if split_name(part) in SPLITS]
    last = named[-1] if named else len(parts) - 1  # test/images is not read from images
    moved = (Path(*parts[start:]) for start in range(1, last + 1) if ".." not in parts[start:])
    for path in (file.parent / ending for ending in moved):
        if path.exists():
            findings.add("moved_path", f"{file}: {entry}, read from {path}")
            return path
    raise DataError(
        f"{file}: {entry!r} does not exist; searched {listed(candidates)}; correct the entry or 'path'"
    )


def _images(location: Path, dataset: _Dataset, findings: FindingCollector) -> Sequence[Path | None]:
    """Return the images in a folder or in a list; None for those of a list that cannot be determined."""
    if location.is_dir():
        return image_files(location)
    locator = ImageLocator(dataset.file.parent, [dataset.base, location.parent])
    lines = [(number, line) for number, line in enumerate(read_lines(location, findings), start=1) if line]
    return [
        locator.find_or_note(line, image_id=order, where=f"{location}, line {number}", findings=findings)
        for order, (number, line) in enumerate(lines, start=1)
    ]


def _require_inside(file: Path, path: Path) -> None:
    if not _is_inside(path, file.parent):
        raise DataError(
            f"{file}: '{path}' is outside the dataset's folder, which is that of {file.name}; put {file.name} into "
            "the folder that contains all images"
        )


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder, without resolving links, which the user may have put there."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100 - does not resolve links
