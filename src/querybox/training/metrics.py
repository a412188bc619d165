"""``metrics.csv``: one row an epoch."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from querybox.weights.files import atomic


class MetricsFile:
    """The rows of a run's ``metrics.csv``. Each new row rewrites the file, so that none is ever torn."""

    def __init__(self, path: Path, epochs_done: int = 0) -> None:
        """Start with the rows of the `epochs_done` first epochs in the file at `path`, if there is one."""
        self.path = path
        self.rows: list[dict[str, str]] = []
        if epochs_done and path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epochs_done]

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; what is NaN or infinite, and what a row lacks, is left empty."""
        self.rows.append(
            {name: f"{value:.6g}" if math.isfinite(value) else "" for name, value in row.items()}
        )
        columns = dict.fromkeys(name for row in self.rows for name in row)
        with atomic(self.path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
