"""The division of a collection into parts, each of which is predicted by one process and becomes one file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from querybox.bulk.find import find
from querybox.bulk.parquet import read_parquet
from querybox.bulk.pictures import Picture
from querybox.bulk.tar import read_tar
from querybox.data.storage import StoredFile, join, opened, suffix
from querybox.errors import DataError
from querybox.inference.sources import distinct
from querybox.inference.video import SUFFIXES as VIDEO_SUFFIXES
from querybox.text import listed
from querybox.urls import is_url, public_name

SHARDS: dict[str, Callable[[str, StoredFile], Iterator[Picture]]] = {
    ".parquet": read_parquet,
    ".tar": read_tar,
}
"""Readers of files with many images, by file name extension."""
PARTS = 100
"""Number of parts that image files are divided into, so that all processes end at about the same time."""
MAX_IMAGES = 1000
"""Maximum number of image files in a part, which is what a killed process loses."""
FILE_NAME = "part-{:08d}.parquet"
"""Name of the file with the detections of the part with a number."""


@dataclass(frozen=True, slots=True)
class Part:
    """Images that become one file."""

    number: int
    """Index of the part, from 0, in the order of the sources."""
    places: tuple[str, ...]
    """Absolute paths or URLs of images, or of one shard."""

    @property
    def file_name(self) -> str:
        """Name of the file with the detections."""
        return FILE_NAME.format(self.number)

    def pictures(self) -> Iterator[Picture]:
        """Yield the images; a file that cannot be read, or is damaged, is an image with an error.

        Raises:
            OSError: A storage cannot be reached, or refuses.
        """
        for place in self.places:
            kind, name = suffix(place), public_name(place)
            if kind in SHARDS:
                yield from shard_pictures(place, SHARDS[kind])
            elif kind in VIDEO_SUFFIXES:
                yield Picture.broken(name, f"{name}: is a video; predict it without --ray")
            else:
                yield Picture.stored(place)


def shard_pictures(place: str, reader: Callable[[str, StoredFile], Iterator[Picture]]) -> Iterator[Picture]:
    """Yield the images in a shard, and one with an error if it is damaged.

    Raises:
        OSError: Its storage cannot be reached, or refuses.
    """
    name = public_name(place)
    try:
        with opened(place) as file:
            yield from reader(name, file)
    except DataError as error:
        yield Picture.broken(name, str(error))


def divide(sources: Sequence[str], output: str | None = None) -> list[Part]:
    """Return the parts of a collection, which are the same for the same files.

    A file that is in several sources is in one part; this is logged.

    Args:
        sources: Paths or URLs of images, folders, patterns and shards.
        output: Path or URL of the folder of results, which are passed over: a pattern may match them.

    Raises:
        ConfigError: A source is a URL of a scheme that is not opened.
        DataError: A source does not exist, or has no images, or none but results.
    """
    places = distinct(place for source in sources for place in find(source, SHARDS))
    if output is not None:
        folder = output if is_url(output) else os.path.abspath(output)  # noqa: PTH100 - without `..`, as the sources
        places = [place for place in places if not is_result(place, folder)]
    if not places:
        raise DataError(f"{listed(sources)}: found nothing but results; expected images, or shards of images")
    images = sum(suffix(place) not in SHARDS for place in places)
    size = min(MAX_IMAGES, math.ceil(images / PARTS))
    groups: list[tuple[str, ...]] = []
    for is_shard, run in groupby(places, lambda place: suffix(place) in SHARDS):
        files = list(run)
        step = 1 if is_shard else size
        groups += [tuple(files[start : start + step]) for start in range(0, len(files), step)]
    return [Part(number, group) for number, group in enumerate(groups)]


def is_result(place: str, folder: str) -> bool:
    """Return whether a place is that of the file of a part in a folder."""
    number = re.search(r"\d+", place[len(folder) :]) if place.startswith(folder) else None
    return number is not None and place == join(folder, FILE_NAME.format(int(number[0])))
