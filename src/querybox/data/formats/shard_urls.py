"""The YAML file of a dataset that is not on this disk: the URLs of the shards of each split, and names of classes.

    train: s3://bucket/train-{000..099}.tar
    val: s3://bucket/val-*.tar
    names: [cat, dog]

A URL is that of a shard, of a folder or of a pattern; `{000..099}` stands for 100 names. The names are those of class
numbers; they are required for YOLO's labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from querybox.data.formats.yolo_lines import Names
from querybox.data.parsing import validation_problem
from querybox.data.splits import SPLITS
from querybox.data.storage import list_urls, suffix
from querybox.data.text import read_start
from querybox.errors import DataError
from querybox.runfile import Loader
from querybox.text import listed, natural_key
from querybox.urls import is_url

SUFFIX = ".tar"
_SUFFIXES = frozenset({".yaml", ".yml"})
_MAX_BYTES = 1 << 20
"""Maximum size of a file with URLs."""
_NUMBERS = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MAX_SHARDS = 1_000_000


class ShardUrls(BaseModel):
    """The content of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    train: str | list[str] = []
    val: str | list[str] = []
    test: str | list[str] = []
    names: dict[int, str] | list[str] = []

    @model_validator(mode="after")
    def _are_urls(self) -> Self:
        for url in self.urls:
            if not is_url(url):
                raise ValueError(f"{url!r} is not a URL; to train on shards of this disk, pass their folder")
        return self

    @property
    def urls(self) -> list[str]:
        """All URLs."""
        return [url for urls in self.splits.values() for url in urls]

    @property
    def splits(self) -> dict[str, list[str]]:
        """The URLs of each split that has some."""
        values = {name: getattr(self, name) for name in SPLITS}
        return {name: [value] if isinstance(value, str) else value for name, value in values.items() if value}

    @property
    def class_names(self) -> Names:
        """The names of classes by number; empty without."""
        return self.names if isinstance(self.names, dict) else dict(enumerate(self.names))

    def shards(self, split: str) -> Iterator[str]:
        """Yield the URLs of the shards of a split.

        Raises:
            ConfigError: A URL is malformed, or of a scheme that is not opened.
            DataError: There is no such folder, or there are no shards in it.
            StorageError: A storage cannot be reached, or refuses.
        """
        for url in self.splits[split]:
            for one in expanded(url):
                is_shard = suffix(one) == SUFFIX and not any(character in one for character in "*?[")
                found = None if is_shard else list_urls(one)
                if found is None:
                    yield one
                    continue
                shards = [each for each in found if suffix(each) == SUFFIX]
                if not shards:
                    raise DataError(
                        f"{one}: has no shards, but {listed(found, 3) or 'nothing'}; expected {SUFFIX} files"
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


def read_shard_urls(file: Path) -> ShardUrls | None:
    """Return the content of a file with URLs; None if it is another one.

    Raises:
        DataError: It has URLs of shards, and something else.
    """
    if file.suffix.lower() not in _SUFFIXES:
        return None
    try:
        content = yaml.load(read_start(file, _MAX_BYTES), Loader)  # noqa: S506 - a safe loader
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None  # reported by other formats
    if not isinstance(content, dict):
        return None
    values = [content.get(name) for name in SPLITS]
    entries = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    if not any(isinstance(entry, str) and is_url(entry) for entry in entries):
        return None
    try:
        return ShardUrls.model_validate(content)
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_problem(error)}; expected URLs of shards in 'train', 'val' and 'test', and 'names'"
        ) from None
