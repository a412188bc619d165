"""The file ``metrics.csv``, with a row per epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from querybox.diagnosis.record import METRICS
from querybox.files import write_text


def as_row(values: Mapping[str, float]) -> dict[str, str]:
    """Format values for the file: integers in full; NaN and infinite values are left empty."""
    return {
        name: (str(value) if isinstance(value, int) else f"{value:.6g}") if math.isfinite(value) else ""
        for name, value in values.items()
    }


def write_metrics(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Rewrite the file in the folder of a run atomically; missing values are left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(
        text, dict.fromkeys(name for row in rows for name in row), restval="", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / METRICS, text.getvalue())
