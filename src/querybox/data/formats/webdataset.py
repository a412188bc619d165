"""Shards of WebDataset: tars in which an image and its annotation have the same name, `000.jpg` and `000.json`.

Images remain in their shards; see `querybox.data.formats.shard_reader`.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from querybox.data.class_names import read_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.shard_reader import TAR, shard_readers
from querybox.data.formats.tar_index import ANNOTATIONS
from querybox.data.formats.yolo_labels import find_names_file
from querybox.data.formats.yolo_lines import Names
from querybox.data.image import SUFFIXES
from querybox.data.layout import shards_by_split
from querybox.data.locate import find_files, iterate_files
from querybox.data.shard_index import FOLDER
from querybox.data.splits import Format, Reader
from querybox.data.storage import opened
from querybox.data.tar import read_members
from querybox.errors import DataError
from querybox.text import natural_key

_TRIED = 10
"""Number of tars that are looked at to recognise a dataset."""
_MEMBERS = 100
"""Number of their members."""


def _splits(path: Path) -> dict[str, Reader]:
    files = _tars(path)
    if not any(map(_has_samples, files[:_TRIED])):
        return {}
    root = path if path.is_dir() else path.parent
    places = {name: partial(map, str, shards) for name, shards in shards_by_split(files, root).items()}
    return shard_readers(path, root / FOLDER, places, partial(_names_beside, root))


def _names_beside(folder: Path, findings: FindingCollector) -> Names:
    """Return the names in the file of class names in a folder; empty if there is none."""
    file = find_names_file([folder])
    return {} if file is None else read_names(file, findings)


def _tars(path: Path) -> list[Path]:
    """Return the tars at a path, in natural order; none in a folder that has images, too, which is another dataset."""
    if path.is_file():
        return [path] if path.suffix.lower() == TAR else []
    if any(PurePosixPath(file).suffix.lower() in SUFFIXES for file in iterate_files(path)):
        return []
    return sorted(find_files(path, {TAR}), key=natural_key)


def _has_samples(file: Path) -> bool:
    """Return whether one of the first members of a tar is an image, and another one its annotation."""
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    try:
        with opened(str(file)) as stream:
            for member in islice(read_members(str(file), stream), _MEMBERS):
                path = PurePosixPath(member.name)
                kind = path.suffix.lower()
                kinds[str(path.with_suffix(""))].add("image" if kind in SUFFIXES else kind)
    except (DataError, OSError):
        pass  # it is reported when it is read; what precedes the damage counts
    return any("image" in found and not found.isdisjoint(ANNOTATIONS) for found in kinds.values())


WEBDATASET = Format(
    name="WebDataset",
    expected="WebDataset: .tar files with an image and its .json or .txt under the same name",
    splits=_splits,
)
