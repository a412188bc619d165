"""Recognise train, val and test splits from the names of files and folders."""

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


def pick_split(readers: Mapping[str, Reader], split: str | None, source: Path) -> Reader:
    """Return the reader of a split; of the only split if `split` is None.

    Raises:
        DataError: There is no such split, or `split` is None and there are several.
    """
    available = ", ".join(readers)
    if split is None:
        if len(readers) > 1:
            raise DataError(f"{source}: has several splits ({available}); specify which one to read")
        return next(iter(readers.values()))
    name = split if split in readers else split_name(split)
    if name not in readers:
        raise DataError(f"{source}: has no split {split!r}; it has {available}")
    return readers[name]
