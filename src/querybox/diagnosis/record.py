"""``record.json`` in a run's folder: what a diagnosis needs to know beside the settings and the metrics."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from querybox.diagnosis.facts import EvaluationFacts, PartFacts, SplitFacts
from querybox.errors import DataError
from querybox.files import write_text

RECORD = "record.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The facts of a run. What is None was not recorded, or not yet."""

    training: SplitFacts | None = None
    validation: SplitFacts | None = None
    parts: Mapping[str, PartFacts] | None = None
    """The detector's parts as training began."""
    evaluation: EvaluationFacts | None = None
    """The latest one."""
    ended: str | None = None
    """Why the run ended: its epochs, its patience, its time, a signal, or the error that ended it."""
    failed: bool = False
    """Whether that is an error."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """Why training images could not be read any more during the run, by their ids."""


def read_record(folder: Path) -> Record:
    """Read what is recorded of the run in `folder`: nothing, if an older version trained it.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return Record()
    try:
        return TypeAdapter(Record).validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise DataError(
            f"{path}: {place}: {problem['msg']}; expected the record of a run: "
            "remove the file, and the rest can be diagnosed"
        ) from None


def add_to_record(folder: Path, **facts: Any) -> None:
    """Set some fields of the record of the run in `folder`; the others stay as they are."""
    record = dataclasses.replace(read_record(folder), **facts)
    text = json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / RECORD, text + "\n")


def read_history(path: Path) -> dict[str, list[float]]:
    """Return the columns of ``metrics.csv``, NaN where a field is empty; nothing when there is no row."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in rows[0]} if rows else {}
