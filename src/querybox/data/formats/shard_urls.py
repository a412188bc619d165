"""Shards at URLs, and the YAML file that names those of each split, and classes.

    train: s3://bucket/train-{000..099}.tar
    val: s3://bucket/val-*.tar
    names: [cat, dog]

A URL is that of a shard, of a folder or of a pattern; `{000..099}` stands for 100 names. In place of a URL there may be
the path, relative to the file, of Parquet files that are to be read where they are. The names are those of class
numbers; they are required for YOLO's labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from querybox.data.class_names import names_by_number
from querybox.data.formats.shard_reader import KINDS, shard_readers
from querybox.data.formats.yolo_lines import Names
from querybox.data.layout import shard_split
from querybox.data.parsing import Whole, validation_problem
from querybox.data.shard_index import FOLDER
from querybox.data.splits import SPLITS, Format, Reader
from querybox.data.storage import is_web, list_urls, suffix
from querybox.data.text import read_start
from querybox.errors import DataError
from querybox.files import cache_folder
from querybox.runfile import Loader
from querybox.text import listed, natural_key
from querybox.urls import is_url, public_name

_SUFFIXES = frozenset({".yaml", ".yml"})
_MAX_BYTES = 1 << 20
"""Maximum size of a file with URLs."""
_NUMBERS = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_SHARDS = 1_000_000
_WILD = frozenset("*?[")
_PATTERN = re.compile(r"[*?\[{]")


class ShardUrls(BaseModel):
    """The content of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    train: str | list[str] = []
    val: str | list[str] = []
    test: str | list[str] = []
    names: dict[Whole, str] | list[str] = []

    @model_validator(mode="after")
    def _are_shards(self) -> Self:
        for place in self.places:
            if not _names_shards(place):
                raise ValueError(f"{place!r} is neither a URL nor a path of {' or '.join(KINDS)} files")
        return self

    @property
    def places(self) -> list[str]:
        """All URLs and paths."""
        return [place for places in self.splits.values() for place in places]

    @property
    def urls(self) -> list[str]:
        """All URLs."""
        return [place for place in self.places if is_url(place)]

    @property
    def splits(self) -> dict[str, list[str]]:
        """The URLs and paths of each split that has some."""
        values = {name: getattr(self, name) for name in SPLITS}
        return {name: [value] if isinstance(value, str) else value for name, value in values.items() if value}

    @property
    def class_names(self) -> Names:
        """The names of classes by number; empty without."""
        return names_by_number(self.names)

    def shards(self, split: str, folder: Path) -> Iterator[str]:
        """Yield the URLs and paths of the shards of a split.

        Args:
            split: The split.
            folder: The folder of the file.

        Raises:
            ConfigError: A URL is malformed, or of a scheme that is not opened.
            DataError: There is no such file or folder, there are no shards in it, or it is outside of `folder`.
            StorageError: A storage cannot be reached, or refuses.
        """
        for place in self.splits[split]:
            yield from shards_at(place) if is_url(place) else _local_shards(place, folder)


def _names_shards(entry: object) -> bool:
    """Return whether an entry of a split is a URL, or the path of shards."""
    return isinstance(entry, str) and (is_url(entry) or PurePosixPath(entry).suffix.lower() in KINDS)


def _local_shards(pattern: str, folder: Path) -> Iterator[str]:
    """Yield the paths that a relative path or pattern stands for, in natural order."""
    for one in expanded(pattern):
        path = PurePosixPath(one)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{one}: is outside of {folder}; expected shards in the folder of the file that names them: move this "
                "file into a folder above them"
            )
        found = sorted(map(str, folder.glob(one)), key=natural_key)
        if not found:
            raise DataError(f"{folder / one}: no such file; check the path")
        yield from found


def shards_at(url: str) -> Iterator[str]:
    """Yield the URLs of the shards that a URL stands for.

    Raises:
        ConfigError: It is malformed, or of a scheme that is not opened.
        DataError: There is no such folder, or there are no shards in it.
        StorageError: Its storage cannot be reached, or refuses.
    """
    for one in expanded(url):
        is_shard = suffix(one) in KINDS and not _WILD.intersection(one)
        found = None if is_shard else list_urls(one)
        if found is None:
            yield one
            continue
        shards = [each for each in found if suffix(each) in KINDS]
        if not shards:
            raise DataError(
                f"{one}: has no shards, but {listed(found, 3) or 'nothing'}; expected {' or '.join(KINDS)} files"
            )
        yield from sorted(shards, key=natural_key)


def expanded(url: str) -> Iterator[str]:
    """Yield the URLs that a URL with a range of numbers, such as `{000..099}`, stands for; one without is itself.

    Raises:
        DataError: They are too many.
    """
    found = _NUMBERS.search(url)
    if found is None:
        yield url
        return
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= _MAX_SHARDS:
        raise DataError(
            f"{url}: stands for {len(numbers):,} shards; expected the first number first, and at most {_MAX_SHARDS:,}"
        )
    for number in numbers:
        yield f"{url[: found.start()]}{number:0{len(first)}}{url[found.end() :]}"


def url_splits(url: str) -> dict[str, Reader]:
    """Return a reader for each split of the shards that a URL stands for; see `shard_split`.

    Their indices are in the user's cache folder.

    Raises:
        ConfigError: As for `shards_at`, as the following ones.
        DataError: There is no such folder, or there are no shards in it.
        StorageError: Its storage cannot be reached, or refuses.
    """
    root = _root(url)
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for place in shards_at(url):
        path = _path(place)
        splits[shard_split(path, root if path.is_relative_to(root) else path.parent)].append(place)
    places = {name: partial(iter, shards) for name, shards in splits.items()}
    return shard_readers(public_name(url), cache_folder() / "shards" / FOLDER, places, lambda _: {})


def _root(url: str) -> PurePosixPath:
    """Return the path of the folder that a URL of a folder, a pattern or a shard is, or begins with."""
    prefix = _PATTERN.split(url)[0]
    return _path(url) if prefix == url and suffix(url) not in KINDS else _path(prefix.rpartition("/")[0])


def _path(url: str) -> PurePosixPath:
    """Return the path of a URL, with its host or bucket."""
    rest = url.partition("://")[2]
    return PurePosixPath((rest.partition("?")[0] if is_web(url) else rest).lstrip("/"))


def read_shard_urls(file: Path) -> ShardUrls | None:
    """Return the content of a file with URLs or paths of shards; None if it is another one.

    Raises:
        DataError: It has such, and something else.
    """
    if file.suffix.lower() not in _SUFFIXES:
        return None
    try:
        content = _content(read_start(file, _MAX_BYTES))
    except OSError:
        return None  # reported by other formats
    if not isinstance(content, dict):
        return None
    values = [content.get(name) for name in SPLITS]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    if not any(map(_names_shards, entries)):
        return None
    try:
        return ShardUrls.model_validate(content)
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_problem(error)}; expected URLs of shards in 'train', 'val' and 'test', and 'names'"
        ) from None


@lru_cache(maxsize=1)  # several formats ask for the same file, which takes PyYAML long if it has many classes
def _content(text: bytes) -> object:
    """Return the content of a YAML file; None if it is malformed, which other formats report."""
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _splits(path: Path) -> dict[str, Reader]:
    urls = read_shard_urls(path)
    if urls is None:
        return {}
    places = {name: partial(urls.shards, name, path.parent) for name in urls.splits}
    return shard_readers(path, path.parent / FOLDER, places, lambda _: urls.class_names)


SHARD_URLS = Format(
    name="shards named by a file",
    expected="shards (.tar or .parquet) whose URLs are in a YAML file",
    splits=_splits,
)
