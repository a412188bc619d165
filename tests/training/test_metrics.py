from __future__ import annotations

import csv
import math
from pathlib import Path

from querybox.training.metrics import MetricsFile


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_that_come_later_are_empty_before(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.append({"epoch": 1, "loss": 2.5})
    metrics.append({"epoch": 2, "loss": 1.25, "AP": 0.5})
    assert rows(metrics.path) == [
        {"epoch": "1", "loss": "2.5", "AP": ""},
        {"epoch": "2", "loss": "1.25", "AP": "0.5"},
    ]


def test_what_could_not_be_measured_is_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.append({"epoch": 1, "APs": math.nan, "grad_norm": math.inf})
    assert rows(metrics.path) == [{"epoch": "1", "APs": "", "grad_norm": ""}]


def test_a_resumed_run_keeps_the_rows_of_finished_epochs_alone(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path / "metrics.csv")
    for epoch in (1, 2, 3):
        first.append({"epoch": epoch, "loss": epoch})
    second = MetricsFile(tmp_path / "metrics.csv", epochs_done=2)
    second.append({"epoch": 3, "loss": 30})
    assert [row["loss"] for row in rows(second.path)] == ["1", "2", "30"]


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv").append({"epoch": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
