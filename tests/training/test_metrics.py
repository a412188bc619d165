from __future__ import annotations

import csv
import math
from pathlib import Path

from querybox.diagnosis.record import METRICS
from querybox.training.metrics import as_row, write_metrics


def written(folder: Path, *rows: dict[str, float]) -> list[dict[str, str]]:
    write_metrics(folder, [as_row(row) for row in rows])
    with (folder / METRICS).open(newline="") as file:
        return list(csv.DictReader(file))


def test_columns_that_come_later_are_empty_before(tmp_path: Path) -> None:
    rows = ({"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1.25, "AP": 0.5})
    assert written(tmp_path, *rows) == [
        {"epoch": "1", "loss": "2.5", "AP": ""},
        {"epoch": "2", "loss": "1.25", "AP": "0.5"},
    ]


def test_what_could_not_be_measured_is_empty(tmp_path: Path) -> None:
    row = {"epoch": 1, "APs": math.nan, "grad_norm": math.inf}
    assert written(tmp_path, row) == [{"epoch": "1", "APs": "", "grad_norm": ""}]


def test_steps_beyond_a_million_are_not_rounded(tmp_path: Path) -> None:
    row = {"step": 1_234_567, "seconds": 1_234_567.8}
    assert written(tmp_path, row) == [{"step": "1234567", "seconds": "1.23457e+06"}]


def test_the_rows_replace_those_that_were_there(tmp_path: Path) -> None:
    written(tmp_path, {"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1.25})
    assert written(tmp_path, {"epoch": 1, "loss": 2.0}) == [{"epoch": "1", "loss": "2"}]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]
