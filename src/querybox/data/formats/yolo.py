"""YOLO text: label files in `labels/` or beside the images, described by `data.yaml`, `obj.data` or `classes.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from querybox.data.class_names import read_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.shard_urls import read_shard_urls
from querybox.data.formats.yolo_files import SUFFIXES, is_yolo_file, yolo_file_splits
from querybox.data.formats.yolo_labels import (
    LABEL_FOLDERS,
    NAMES_FILES,
    find_names_file,
    is_label_file,
    label_folder_of,
    read_yolo,
)
from querybox.data.image import SUFFIXES as IMAGE_SUFFIXES
from querybox.data.locate import find_files, image_files, list_files
from querybox.data.records import DetectionData
from querybox.data.splits import SPLITS, Format, Reader, by_split, split_name
from querybox.errors import DataError

_DATA_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
_KINDS = [
    pair
    for images, labels in LABEL_FOLDERS.items()
    for pair in ((images, labels), (images.title(), labels.title()))
]
"""Names of the folders of images and of label files."""


def yolo_splits(path: Path) -> dict[str, Reader]:
    """Return a reader for each split of a YOLO dataset.

    `path` is a `data.yaml` or `obj.data`; a folder with one of these; or a folder without, in one of these layouts:
    `images/<split>` and `labels/<split>`; `<split>/images` and `<split>/labels`; `images` and `labels`; label files
    beside the images, in folders with the names of splits or in the folder itself. Without splits, the only one is
    `all`. Then `classes.txt`, in the folder or among the label files, lists the class names, one per line.
    """
    if path.is_file():
        if read_shard_urls(path) is not None:
            return {}
        if path.name.lower() in NAMES_FILES:
            return _folder_splits(path.parent)
        return yolo_file_splits(path) if path.suffix.lower() in SUFFIXES else {}
    if not path.is_dir():
        return {}
    file = _data_file(path)
    return yolo_file_splits(file) if file else _folder_splits(path)


def _data_file(folder: Path) -> Path | None:
    """Return the file that describes the dataset: by its name, or the only one that looks like it.

    It is in the folder, or, as in Darknet's own layout, in `data`.
    """
    files = list_files(folder, *SUFFIXES) or list_files(folder / "data", ".data")
    named = [file for name in _DATA_FILES for file in files if file.name.lower() == name]
    recognised = named or [file for file in files if is_yolo_file(file)]
    return recognised[0] if named or len(recognised) == 1 else None


def _folder_splits(folder: Path) -> dict[str, Reader]:
    splits = _image_folders(folder)
    return by_split({name: partial(_read_folder, folder, images) for name, images in splits.items()})


def _image_folders(folder: Path) -> dict[str, Path]:
    """Return the folder of images of each split."""
    for kinds in _KINDS:
        images, labels = (folder / kind for kind in kinds)
        if images.is_dir() and _has_label_files(labels):
            names = {path.name for kind in (images, labels) for path in _subfolders(kind)}
            return {name: images / name for name in sorted(names)} or {"all": images}
    inner = {
        path.name: path / images
        for path in _subfolders(folder)
        for images, labels in _KINDS
        if _has_label_files(path / labels)
    }
    if inner:
        return inner
    if _has_labels_beside(folder):
        return {"all": folder}
    splits = [path for path in _subfolders(folder) if split_name(path.name) in SPLITS]
    return {path.name: path for path in splits} if any(map(_has_labels_beside, splits)) else {}


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_label_files(folder: Path) -> bool:
    """Return whether the first text files in a folder are labels; a folder without other files may have none."""
    if not folder.is_dir():
        return False
    files = [file for file in find_files(folder, {".txt"}) if file.name.lower() not in NAMES_FILES]
    return _are_labels(files) if files else not list_files(folder, ".csv", ".json", ".xml")


def _has_labels_beside(folder: Path) -> bool:
    images = {file.stem for file in list_files(folder, *IMAGE_SUFFIXES)}
    files = [file for file in list_files(folder, ".txt") if file.stem in images]
    return _are_labels(files)


def _are_labels(files: Sequence[Path]) -> bool:
    """Return whether one of the first files looks like labels; empty ones do if there are no others."""
    first = files[:20]
    return any(map(is_label_file, [file for file in first if file.stat().st_size] or first))


def _read_folder(root: Path, images: Path) -> DetectionData:
    labels = label_folder_of(images)
    file = find_names_file((root, root / "labels", root / "Labels", labels, labels.parent, images))
    if file is None:
        raise DataError(
            f"{root}: class names not found; add a classes.txt with one name per line, or a data.yaml"
        )
    findings = FindingCollector(images)
    if images.parent.name.lower() in LABEL_FOLDERS:
        for stray in list_files(images.parent, *IMAGE_SUFFIXES):
            findings.add("unread_file", str(stray))
    images_by_id = dict(enumerate(image_files(images), start=1))
    return read_yolo(images, images_by_id, read_names(file, findings), findings, label_folder=labels)


YOLO = Format(
    name="YOLO",
    expected="YOLO: a data.yaml or obj.data, a folder with images/ and labels/, or label files beside the images",
    splits=yolo_splits,
)
