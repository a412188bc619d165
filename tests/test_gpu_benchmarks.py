"""The rows of `python -m benchmarks.gpu`, on the CPU with tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import measure, report
from benchmarks.gpu.__main__ import line, main, without_time
from benchmarks.gpu.memory import MIB, with_peak_memory
from benchmarks.gpu.models import MODELS, Run
from benchmarks.measure import Row, RowResult, Side, SideResult, Work


def test_all_rows_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "SHORTEST", 0.0)
    monkeypatch.setattr(measure, "gc", Mock())  # which would visit all that the other tests have made
    rows = ["pipeline", "training*", "inference*", "memory*"]
    assert main(["--device", "cpu", "--quick", "--output", str(tmp_path), *rows]) == 0
    results = report.read(tmp_path / "results.json")
    sides = {(row.name, side.name): side for row in results for side in row.sides}
    assert len(results) == 1 + 2 * len(MODELS) + 3
    for (row, name), side in sides.items():
        if "CUDA graph" in name or row.startswith("memory"):
            assert side.status == "absent"
        elif name.startswith("transformers") and "dino" in row:
            assert side.note == "transformers has no DINO R50, 4 maps"
        else:
            assert side.status == "measured", (row, name, side.note)
    assert "pipeline (images/s): querybox" in capsys.readouterr().out
    assert (tmp_path / "results.md").exists()


def test_the_peak_memory_of_a_side_leaves_out_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    in_use, highest = 0, 0

    def allocate(count: int) -> None:
        nonlocal in_use, highest
        in_use += count * MIB
        highest = max(highest, in_use)

    def reset(_: torch.device) -> None:
        nonlocal highest
        highest = in_use

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: in_use)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: highest)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)

    def side(weights: int, state: int, step: int) -> Callable[[], float]:
        """A side whose first step makes a state that it keeps, as AdamW does."""
        missing = [state]

        def work() -> None:
            allocate(step + (missing.pop() if missing else 0))
            allocate(-step)

        def build() -> Work:
            allocate(weights)
            return work

        return with_peak_memory(Run(device=torch.device("cuda"), quick=True), build)

    first = side(10, 20, 5)
    assert first() == 35
    second = side(100, 200, 50)
    assert [second(), first(), second()] == [350, 35, 350]


def test_a_row_without_time_left_says_so() -> None:
    row = Row(name="r", title="R", sides=[Side(name="querybox", build=lambda: list)], difference=None)
    assert line(without_time(row)) == "r (s): querybox absent (no time was left)"


def test_a_line_has_medians() -> None:
    sides = [SideResult(name="a", samples=[1.0, 3.0, 2.0]), SideResult(name="b", status="failed", note="why")]
    assert line(RowResult(name="r", title="R", unit="s", sides=sides)) == "r (s): a 2; b failed (why)"


def test_unknown_rows_are_answered_with_the_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--output", str(tmp_path), "no such row"]) == 1
    assert {"tests", "pipeline", "training-dino-bf16"} <= set(capsys.readouterr().out.split())
