"""One fault, what has to happen, and the code that makes it happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class NotSurvivedError(AssertionError):
    """What happened is not what is required."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the table."""

    name: str
    """Of the fault, such as ``truncated JPEG``; unique within its part."""
    required: str
    """What has to happen, in a few words."""
    run: Callable[[Path, bool], str]
    """Makes the fault in an empty folder, in its short or, where True, its long form; returns what happened, with
    counts, and raises where that is not what is required."""


def require(held: bool, happened: str) -> None:
    """Raise NotSurvivedError, saying what `happened`, unless the requirement `held`."""
    if not held:
        raise NotSurvivedError(happened)
