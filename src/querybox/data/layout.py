"""Find the annotation files of a dataset, and the folders of their images."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from querybox.data.image import SUFFIXES
from querybox.data.locate import ImageLocator, is_junk, iterate_files, list_files
from querybox.data.parsing import read_head
from querybox.data.splits import SPLITS, split_name

_MAX_TRIED = 100
"""Number of files in a folder after which, if none of them is recognised, the others are not tried; formats with a file
for each image have many."""


PARTS = frozenset(
    {
        "annotation",
        "annotations",
        "annots",
        "data",
        "image",
        "images",
        "img",
        "imgs",
        "jpegimages",
        "label",
        "labels",
    }
)
"""Names of folders (lower case) that are a part of a dataset."""
_SHARD = re.compile(r"[-_.]?\d+(-of-\d+)?(-[0-9a-f]{16})?$")
"""End of the name of a file that is a part of a split."""
_DOCUMENTS = re.compile(r"(readme|license|licence)", re.IGNORECASE)
"""Beginning of the names of files that say nothing about the layout."""


def inner_folder(path: Path) -> Path:
    """Return the only folder in `path`, if it has nothing else: archives are often unpacked to `photos/photos/`.

    A folder that is named like a split or a part of a dataset stays where it is.
    """
    while path.is_dir():
        with os.scandir(path) as entries:
            inner = [entry for entry in entries if not (is_junk(entry.name) or _DOCUMENTS.match(entry.name))]
        if len(inner) != 1 or not inner[0].is_dir():
            break
        name = inner[0].name
        if name.lower() in PARTS or split_name(name) in SPLITS:
            break
        path = path / name
    return path


def split_files(path: Path, suffix: str, recognises: Callable[[Path], bool]) -> dict[str, Path]:
    """Return the annotation files at `path` by the name of their split.

    Args:
        path: A file, or a folder: files in it, otherwise in its subfolders, otherwise in theirs. A file is named after
            the folder in `path` that is a split, otherwise after itself.
        suffix: The suffix of the files (lower case).
        recognises: Returns whether a file has the format, from a bounded number of its bytes.
    """
    if path.is_file():
        return {path.stem: path} if path.suffix.lower() == suffix and recognises(path) else {}
    folders, files = [path], _recognised(path, suffix, recognises)
    for _ in range(2):
        if not files:
            folders = subfolders(folders)
            files = [file for folder in folders for file in _recognised(folder, suffix, recognises)]
    names = [split_folder(file.parent, path) or file.stem for file in files]
    counts = Counter(names)
    return {
        name if counts[name] == 1 else file.relative_to(path).with_suffix("").as_posix(): file
        for name, file in zip(names, files, strict=True)
    }


def files_by_split(path: Path, suffix: str, recognises: Callable[[Path], bool]) -> dict[str, list[Path]]:
    """Return the annotation files at `path` by split, for formats with a file for each image.

    Args:
        path: A file, or a folder: files in it and in two levels of subfolders, all those with the suffix in folders
            where one is recognised. Outside of folders named after splits, the split is `all`.
        suffix: The suffix of the files (lower case).
        recognises: Returns whether a file has the format, from a bounded number of its bytes.
    """
    if path.is_file():
        return {path.stem: [path]} if path.suffix.lower() == suffix and recognises(path) else {}
    children = subfolders([path])
    files: defaultdict[str, list[Path]] = defaultdict(list)
    for folder in (path, *children, *subfolders(children)):
        files[split_folder(folder, path) or "all"] += _files_of_format(folder, suffix, recognises)
    return {name: found for name, found in files.items() if found}


def folders_in_file(file: Path) -> list[str]:
    """Return the names of the folders of splits beside a file whose images it names, by its beginning.

    It has to name an image in one of them; then the images of the others may be further down.
    """
    names = [folder.name for folder in subfolders([file.parent]) if split_name(folder.name) in SPLITS]
    if len(names) < 2 or split_name(file.stem) in SPLITS:
        return []
    head = read_head(file).replace("\\", "/")
    return names if any(f"{name}/" in head for name in names) else []


def subfolders(folders: Iterable[Path]) -> list[Path]:
    """Return the folders in `folders`, in sorted order."""
    found: list[str] = []
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:  # faster than Path.iterdir in folders of many images
                found += [entry.path for entry in entries if entry.is_dir()]
    return [Path(path) for path in sorted(found)]


def split_folder(folder: PurePath, root: PurePath) -> str | None:
    """Return the name of the first folder on the way from `root` to `folder` that is a split; None if none is."""
    return next((part for part in folder.relative_to(root).parts if split_name(part) in SPLITS), None)


def _recognised(folder: Path, suffix: str, recognises: Callable[[Path], bool]) -> list[Path]:
    return [file for file in _files_of_format(folder, suffix, recognises) if recognises(file)]


def _files_of_format(folder: Path, suffix: str, recognises: Callable[[Path], bool]) -> list[Path]:
    """Return all files with the suffix in a folder, if one of the first is recognised."""
    files = list_files(folder, suffix)
    return files if any(map(recognises, files[:_MAX_TRIED])) else []


def shards_by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Return files that are parts of splits by the name of their split.

    It is the folder in `root` that is a split, otherwise the name of the file without its number; `all` without a name.
    """
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[shard_split(file, root)].append(file)
    return dict(groups)


def shard_split(file: PurePath, root: PurePath) -> str:
    """Return the name of the split that a file is a part of; see `shards_by_split`."""
    return split_folder(file.parent, root) or _SHARD.sub("", file.stem) or "all"


def dataset_root(path: Path) -> Path:
    """Return the folder of the dataset at `path`, a file or a folder.

    It is the folder above if annotations have a folder of their own: if that is named `annotations` or `labels`, or has
    no images but is beside `images`.
    """
    folder = path.parent if path.is_file() else path
    if folder.name.lower() in {"annotations", "labels"}:
        return folder.parent
    if (folder.parent / "images").is_dir() and not _has_images(folder):
        return folder.parent
    return folder


def _has_images(folder: Path) -> bool:
    return any(os.path.splitext(path)[1].lower() in SUFFIXES for path in iterate_files(folder))  # noqa: PTH122 - faster


def locator_for(path: Path, file: Path) -> ImageLocator:
    """Return the locator of the images of an annotation file.

    Args:
        path: The dataset as given: a folder, or `file` itself.
        file: The annotation file.
    """
    root = dataset_root(path)
    split = split_folder(file.parent, root) or file.stem
    parents = [root, root / "images"]
    named = [folder for folder in subfolders(parents) if split_name(folder.name) == split_name(split)]
    usual = [
        path for folder in (file.parent, *named) for path in (folder, folder / "images", folder / "data")
    ]
    return ImageLocator(root, [*usual, root / "images"])
