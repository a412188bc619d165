"""``record.json`` in a run's folder: the facts that a diagnosis needs besides settings and metrics."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from querybox.diagnosis.facts import EvaluationFacts, PartFacts, SplitFacts
from querybox.errors import DataError
from querybox.files import write_text
from querybox.settings import type_adapter
from querybox.text import to_json

RECORD, METRICS = "record.json", "metrics.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The facts about a run. Fields that are None have not been recorded."""

    training: SplitFacts | None = None
    validation: SplitFacts | None = None
    parts: Mapping[str, PartFacts] | None = None
    """The detector's modules at the start of training."""
    evaluation: EvaluationFacts | None = None
    """The latest evaluation."""
    ended: str | None = None
    """Why the run ended: epochs, patience, time, signal, or the message of an error."""
    failed: bool = False
    """Whether the run ended with an error."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """Reasons why training images became unreadable during the run, by image id."""


def read_record(folder: Path) -> Record:
    """Read the record of the run in `folder`; empty if it was trained by an older version.

    Raises:
        DataError: The file is corrupt.
    """
    path = folder / RECORD
    if not path.is_file():
        return Record()
    try:
        record: Record = type_adapter(Record).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise DataError(
            f"{path}: {place}: {problem['msg']}; expected the record of a run: "
            "remove the file to diagnose the rest"
        ) from None
    return record


def add_to_record(folder: Path, **facts: Any) -> None:
    """Set some fields of the record of the run in `folder`."""
    record = dataclasses.replace(read_record(folder), **facts)
    text = to_json(dataclasses.asdict(record), indent=1)
    write_text(folder / RECORD, text + "\n")


def read_history(folder: Path) -> dict[str, list[float]]:
    """Return the columns of the ``metrics.csv`` of a run, with NaN for empty fields; an empty dict if it has no row.

    Raises:
        DataError: The file is corrupt.
    """
    path = folder / METRICS
    if not path.is_file():
        return {}
    try:
        return read_columns(path)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise DataError(
            f"{path}: is corrupt ({error}); expected the table that the run wrote, with commas: resume the run, which "
            "writes it again, or remove the file to diagnose the rest"
        ) from None


def read_columns(path: Path) -> dict[str, list[float]]:
    """Return the columns of a file with the metrics of a run; see `read_history`.

    Raises:
        ValueError, TypeError, KeyError, csv.Error: The file is corrupt.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    history = {name: [float(row[name] or "nan") for row in rows] for name in rows[0]} if rows else {}
    if rows and not all(map(math.isfinite, [*history["epoch"], *history["step"]])):
        raise ValueError("a row has no epoch or no step")
    return history
