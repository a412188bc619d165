"""Shards of WebDataset: tars in which an image and its annotation have the same name, `000.jpg` and `000.json`.

Images remain in their shards; an index has the places of images and their annotations, which are read by
`querybox.data.formats.webdataset_sample`. Shards are files on this disk, or named by a YAML file with their URLs; see
`querybox.data.formats.shard_urls`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from querybox.data.annotated import AnnotatedImage, AnnotatedSplit, annotated_splits
from querybox.data.findings import FindingCollector
from querybox.data.formats.hugging_face_objects import categories
from querybox.data.formats.shard_urls import SUFFIX, read_shard_urls
from querybox.data.formats.webdataset_sample import parse_sample
from querybox.data.formats.yolo_files import read_names
from querybox.data.formats.yolo_labels import NAMES_FILES
from querybox.data.formats.yolo_lines import Names
from querybox.data.image import SUFFIXES
from querybox.data.layout import shards_by_split
from querybox.data.locate import ImageLocator, find_files, iterate_files
from querybox.data.shard_index import ANNOTATIONS, FOLDER, read_index
from querybox.data.splits import Format, Reader
from querybox.data.storage import opened
from querybox.data.tar import read_members
from querybox.errors import DataError
from querybox.structures import Category
from querybox.text import natural_key

_TRIED = 10
"""Number of tars that are looked at to recognise a dataset."""
_MEMBERS = 100
"""Number of their members."""


def _splits(path: Path) -> dict[str, Reader]:
    urls = read_shard_urls(path)
    if urls is not None:
        places = {name: partial(urls.shards, name) for name in urls.splits}
        return _readers(path, path.parent, places, lambda _: urls.class_names)
    files = _tars(path)
    if not any(map(_has_samples, files[:_TRIED])):
        return {}
    root = path if path.is_dir() else path.parent
    groups = shards_by_split(files, root)
    local = {name: partial(map, str, shards) for name, shards in groups.items()}
    return _readers(path, root, local, partial(_names_beside, root))


def _readers(
    path: Path,
    root: Path,
    places: Mapping[str, Callable[[], Iterable[str]]],
    names: Callable[[FindingCollector], Names],
) -> dict[str, Reader]:
    """Return a reader for each split.

    Args:
        path: The dataset, for messages.
        root: The folder that the folder of indices is in.
        places: Returns the shards of each split, by its name.
        names: Returns the names of classes by number; empty if they are in the annotations.
    """
    locator = ImageLocator(root)
    splits = {
        name: AnnotatedSplit(
            path, locator, partial(_parse, path, shards, root / FOLDER, names), is_whole=False
        )
        for name, shards in places.items()
    }
    return annotated_splits(splits, partial(_categories, path, names))


def _categories(
    path: Path, names: Callable[[FindingCollector], Names], found: Collection[str]
) -> tuple[Category, ...]:
    return categories(names(FindingCollector(path)), found)


def _names_beside(folder: Path, findings: FindingCollector) -> Names:
    """Return the names in the first of `NAMES_FILES` in a folder; empty if there is none."""
    file = next((folder / name for name in NAMES_FILES if (folder / name).is_file()), None)
    return {} if file is None else read_names(file, findings)


def _tars(path: Path) -> list[Path]:
    """Return the tars at a path, in natural order; none in a folder that has images, too, which is another dataset."""
    if path.is_file():
        return [path] if path.suffix.lower() == SUFFIX else []
    if any(PurePosixPath(file).suffix.lower() in SUFFIXES for file in iterate_files(path)):
        return []
    return sorted(find_files(path, {SUFFIX}), key=natural_key)


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


def _parse(
    source: Path,
    places: Callable[[], Iterable[str]],
    folder: Path,
    names: Callable[[FindingCollector], Names],
    findings: FindingCollector,
) -> Iterator[AnnotatedImage]:
    """Yield the images, of one shard at a time, which are too many to be in memory together."""
    known = names(findings)
    for place in places():
        try:
            index = read_index(place, folder)
        except DataError as error:
            findings.add("malformed", str(error))
            continue
        for kind, what in index.problems:
            findings.add(kind, what)
        for sample in index.samples:
            if sample.has_labels and not known:
                raise DataError(
                    f"{source}: class names not found; add a classes.txt with one name per line beside the shards, or "
                    "'names' to the file that has their URLs"
                )
            try:
                yield parse_sample(place, sample, known, findings)
            except DataError as error:
                findings.add("malformed", str(error))


WEBDATASET = Format(
    name="WebDataset",
    expected="WebDataset: .tar files with an image and its .json or .txt under the same name, or a YAML file with "
    "their URLs",
    splits=_splits,
)
