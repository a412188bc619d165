"""Formats of datasets, and their train, val and test splits, recognised from the names of files and folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from querybox.data.records import DetectionData
from querybox.errors import DataError

Reader = Callable[[], DetectionData]
"""Reads one split. Problems of the data are among its findings; a `DataError` means that nothing can be read."""


class Format(NamedTuple):
    """A format of datasets."""

    name: str
    """Name of the format in messages."""
    expected: str
    """What a dataset in the format looks like, in one phrase, for the message that nothing was recognised."""
    splits: Callable[[Path], dict[str, Reader]]
    """Returns a reader for each split at a path, a file or a folder; empty if it does not have this format.

    Recognition is by name and, where the name says nothing, by content, of which a bounded number of bytes is read.
    """
    made_from: str | None = None
    """Name of the format from which tools make such files; if a dataset has both, that one is read."""


SPLITS = ("train", "val", "test")

_NAME = re.compile(r"(?<![a-z])(?:(train|training)|(val|valid|validation)|(test|testing))(?![a-z])")


def split_name(text: str) -> str:
    """Return the split that a name refers to, or the name itself.

    `instances_train2017` is `train`, `valid` is `val`; `trainval` stays `trainval`.
    """
    matched = _NAME.search(text.lower())
    return SPLITS[(matched.lastindex or 1) - 1] if matched else text


def by_split(readers: Mapping[str, Reader]) -> dict[str, Reader]:
    """Key `readers` by split; names that refer to the same split are kept in full."""
    counts = Counter(split_name(name) for name in readers)
    return {
        (split_name(name) if counts[split_name(name)] == 1 else name): read for name, read in readers.items()
    }


def pick_split(
    readers: Mapping[str, Reader],
    split: str | None,
    source: Path | str,
    *,
    setting: str = "--split, or split= in Python",
) -> Reader:
    """Return the reader of a split; of the only split if `split` is None.

    Args:
        readers: The readers of all splits.
        split: Name of the split.
        source: The dataset, for messages.
        setting: What names the split, for messages.

    Raises:
        DataError: There is no such split, or `split` is None and there are several.
    """
    available = ", ".join(readers)
    if split is None:
        if len(readers) > 1:
            raise DataError(
                f"{source}: has several splits ({available}); specify which one to read: {setting}"
            )
        return next(iter(readers.values()))
    name = split if split in readers else split_name(split)
    if name not in readers:
        raise DataError(f"{source}: has no split {split!r}; it has {available}: name one of them ({setting})")
    return readers[name]
