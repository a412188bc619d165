"""Telling train, val and test apart by the names that people give to files and folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from querybox.data.records import DetectionData
from querybox.errors import DataError

Reader = Callable[[], DetectionData]

SPLITS = ("train", "val", "test")

_NAME = re.compile(r"(?<![a-z])(?:(train|training)|(val|valid|validation)|(test|testing))(?![a-z])")


def split_name(text: str) -> str:
    """Return the split that a name speaks of, else the name itself.

    `instances_train2017` is `train`, `valid` is `val`; `trainval` stays `trainval`.
    """
    found = _NAME.search(text.lower())
    return SPLITS[(found.lastindex or 1) - 1] if found else text


def by_split(readers: Mapping[str, Reader]) -> dict[str, Reader]:
    """Key `readers` by split; where two names speak of the same split, they keep their whole names."""
    counts = Counter(split_name(name) for name in readers)
    return {
        (split_name(name) if counts[split_name(name)] == 1 else name): read for name, read in readers.items()
    }


def pick_split(readers: Mapping[str, Reader], split: str | None, where: Path) -> Reader:
    """Return the reader of one split; of the only one where `split` is None.

    Raises:
        DataError: There is no such split, or there are several and none was named.
    """
    known = ", ".join(readers)
    if split is None:
        if len(readers) > 1:
            raise DataError(f"{where}: has several splits ({known}); say which one to read")
        return next(iter(readers.values()))
    name = split if split in readers else split_name(split)
    if name not in readers:
        raise DataError(f"{where}: has no split {split!r}; it has {known}")
    return readers[name]
