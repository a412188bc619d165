"""Datasets of shards: tars and Parquet files whose images are read where they are.

An index has the places of the images and their annotations, which are read by
`querybox.data.formats.webdataset_sample`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from querybox.data.annotated import AnnotatedImage, AnnotatedSplit, annotated_splits
from querybox.data.class_names import note_repeated_names
from querybox.data.findings import FindingCollector
from querybox.data.formats.hugging_face_objects import categories
from querybox.data.formats.parquet_index import parquet_index
from querybox.data.formats.tar_index import tar_index
from querybox.data.formats.webdataset_sample import parse_sample
from querybox.data.formats.yolo_lines import Names
from querybox.data.locate import ImageLocator
from querybox.data.shard_index import ShardIndex, read_index
from querybox.data.splits import Reader
from querybox.data.storage import suffix
from querybox.errors import DataError
from querybox.structures import Category

TAR, PARQUET = ".tar", ".parquet"
KINDS = (TAR, PARQUET)
"""File name extensions of shards."""


def shard_readers(
    source: Path | str,
    folder: Path,
    places: Mapping[str, Callable[[], Iterable[str]]],
    names: Callable[[FindingCollector], Names],
) -> dict[str, Reader]:
    """Return a reader for each split.

    Args:
        source: The dataset: a path, or a URL without credentials.
        folder: The folder of indices.
        places: Returns the shards of each split, by its name.
        names: Returns the names of classes by number; empty if they are in the shards.
    """
    dataset = _Shards(source, folder, places, names)
    locator = ImageLocator(folder.parent)  # which has nothing to find
    splits = {
        name: AnnotatedSplit(source, locator, partial(dataset.parse, name), is_whole=False) for name in places
    }
    return annotated_splits(splits, dataset.categories)


class _Shards:
    """The shards of a dataset; see `shard_readers`."""

    def __init__(
        self,
        source: Path | str,
        folder: Path,
        places: Mapping[str, Callable[[], Iterable[str]]],
        names: Callable[[FindingCollector], Names],
    ) -> None:
        self.source = source
        self.folder = folder
        self.places = places
        self.names = names
        self.stated: dict[int, str] = {}
        """Names that shards have themselves, of those that have been read."""

    def categories(self, found: Collection[str]) -> tuple[Category, ...]:
        """Return the categories, given the names that occur."""
        return categories(self.source, self.names(FindingCollector(self.source)) or self.stated, found)

    def parse(self, split: str, findings: FindingCollector) -> Iterator[AnnotatedImage]:
        """Yield the images of a split, of one shard at a time, which are too many to be in memory together."""
        known = self.names(findings)
        note_repeated_names(known, findings)
        stated: Names = {}
        for place in self.places[split]():
            try:
                index = read_index(place, self.folder, make_index)
            except DataError as error:
                findings.add("malformed", str(error))
                continue
            self.stated = self.stated or index.names
            if not known and index.names != stated:  # those of all shards are alike
                note_repeated_names(index.names, findings)
                stated = index.names
            for kind, what in index.problems:
                findings.add(kind, what)
            names = known or index.names or self.stated
            for sample in index.samples:
                if sample.has_labels and not names:
                    raise DataError(
                        f"{self.source}: class names not found; add a classes.txt with one name per line beside the "
                        "shards, or 'names' to a file that has their URLs"
                    )
                try:
                    yield parse_sample(place, sample, names, findings)
                except DataError as error:
                    findings.add("malformed", str(error))


def make_index(place: str, stated: str) -> ShardIndex:
    """Return the index of a tar or a Parquet file, given its path or URL and its version; see `tar_index`."""
    return parquet_index(place, stated) if suffix(place) == PARQUET else tar_index(place, stated)
