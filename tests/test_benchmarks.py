"""The machinery of the benchmarks, with sides that take no time."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from environments import ENVIRONMENT
from PIL import Image
from programs import new_processes

from benchmarks import measure as module
from benchmarks import plots, report, training_small, yolo
from benchmarks.__main__ import main, matches
from benchmarks.environment import command
from benchmarks.goals import beyond, faster, ratio, smaller, spread, under, within
from benchmarks.measure import Absent, Row, RowResult, Side, measure
from benchmarks.processes import in_separate_processes
from benchmarks.setup import Setup
from benchmarks.small import Kind


class Clock:
    """Shows the seconds that the work says it took."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, seconds: float, answer: float = 1.0, **options: Any) -> Side:
        """A side whose work takes so long."""

        def work() -> float:
            self.now += seconds
            self.order.append(name)
            return answer

        return Side(name=name, build=lambda: work, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and no collections of garbage, which would visit all that the other tests have made."""
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "gc", Mock())


def row(*sides: Side, **options: Any) -> Row:
    values: dict[str, Any] = {
        "name": "r",
        "title": "R",
        "difference": lambda a, b: abs(a - b),
        "rounds": (3, 3),
    }
    return Row(sides=sides, **{**values, **options})


def failing(error: Exception) -> Callable[[], Any]:
    def build() -> Any:
        raise error

    return build


def test_sides_answer_once_and_then_take_turns() -> None:
    clock = Clock()
    result = measure(row(clock.side("ours", 1.0), clock.side("theirs", 2.0)), clock)
    assert clock.order == ["ours", "theirs"] * 4
    assert [side.samples for side in result.sides] == [[1.0] * 3, [2.0] * 3]


def test_quick_work_is_repeated_within_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHORTEST", 1.0)
    clock = Clock()
    result = measure(row(clock.side("ours", 0.25)), clock)
    assert result.sides[0].samples == [0.25] * 3
    assert len(clock.order) == 1 + 3 * 4


def test_rounds_go_on_until_the_time_is_up() -> None:
    for seconds, rounds in ((0.0, 2), (4.5, 5), (100.0, 7)):
        clock = Clock()
        result = measure(row(clock.side("ours", 1.0), rounds=(2, 7), seconds=seconds), clock)
        assert len(result.sides[0].samples) == rounds


def test_another_answer_is_reported_and_not_timed() -> None:
    clock = Clock()
    close, far = clock.side("close", 1, 1.05, tolerance=0.1), clock.side("far", 1, 1.5, tolerance=0.1)
    nan = clock.side("nan", 1, float("nan"), tolerance=0.1)
    first, second, third, fourth = measure(row(clock.side("ours", 1), close, far, nan), clock).sides
    assert first.difference == 0.0
    assert second.difference == pytest.approx(0.05)
    assert (third.status, third.samples) == ("differs", [])
    assert "0.5" in third.note
    assert fourth.status == "differs"
    assert clock.order.count("far") == 1


def test_what_fails_or_is_missing_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    calls = iter([1.0, 1.0])
    monkeypatch.setattr("benchmarks.measure.is_native", lambda precision, _: precision == "float32")
    result = measure(
        row(
            clock.side("ours", 1),
            Side(name="missing", build=failing(Absent("no checkout"))),
            Side(name="not installed", build=failing(ModuleNotFoundError("No module named 'x'"))),
            Side(name="emulated", build=lambda: lambda: 1.0, precision="bf16"),
            Side(name="broken", build=failing(ValueError("bad\nlong"))),
            Side(name="breaks later", build=lambda: lambda: next(calls)),
            clock.side("theirs", 1),
        ),
        clock,
    )
    assert [side.status for side in result.sides] == [
        "measured",
        "absent",
        "absent",
        "absent",
        "failed",
        "failed",
        "measured",
    ]
    assert [side.note for side in result.sides[1:5]] == [
        "no checkout",
        "No module named 'x'",
        "this CPU emulates bf16",
        "ValueError: bad",
    ]
    assert [len(side.samples) for side in result.sides] == [3, 0, 0, 0, 0, 0, 3]


def test_nothing_is_compared_with_a_first_side_that_failed() -> None:
    result = measure(row(Side(name="ours", build=failing(ValueError("bad"))), Clock().side("theirs", 1)))
    assert [side.status for side in result.sides] == ["failed", "absent"]


def test_a_row_may_measure_something_else_than_time() -> None:
    clock = Clock()
    result = measure(row(clock.side("ours", 1.0, 42.0), value=lambda answer: answer, rounds=(1, 1)), clock)
    assert result.sides[0].samples == [42.0, 42.0]  # the answer that is compared is one of them


def test_goals_count_the_best_side_and_pairs_of_one_round() -> None:
    samples = {"slow": [2.0, 4.0, 9.0], "fast": [1.0, 2.0, 4.0], "peer": [3.0, 5.0, 8.0]}
    goal = faster(["slow", "fast", "absent"], "peer", 2.0).judge(samples)
    assert (goal.side, goal.value, goal.reached) == ("fast", 2.5, True)
    assert not faster(["slow"], "peer", 2.0).judge(samples).reached
    assert smaller(["fast"], "peer", 0.4).judge(samples).reached
    assert beyond("peer", "slow", 1.5).judge(samples).value == 1.0
    assert not under("peer", 5.0).judge(samples).reached
    assert within("slow", "peer", 1.0).judge(samples).reached
    lacking = faster(["absent"], "peer", 2.0).judge(samples)
    assert (lacking.value, lacking.reached) == (None, False)
    assert not faster(["fast"], "absent", 2.0).judge(samples).reached


def test_statistics() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)
    assert ratio([1.0, 2.0, 4.0], [2.0, 6.0, 4.0]) == 2.0


@pytest.fixture
def results() -> list[RowResult]:
    clock = Clock()
    rows = [
        row(
            clock.side("querybox", 0.5),
            clock.side("transformers", 1.0),
            Side(name="facebookresearch", build=failing(Absent("no checkout"))),
            goals=[faster(["querybox"], "transformers", 1.5), faster(["querybox"], "facebookresearch", 2)],
        ),
        *(row(clock.side("querybox", 0.1 * x), name=f"grow-{x}", title="Growth", x=x) for x in (1, 2, 4)),
    ]
    found = [measure(each, clock) for each in rows]
    for each in found:
        each.environment = ENVIRONMENT
    return found


def test_results_are_kept_and_replaced_row_by_row(results: list[RowResult], tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    assert report.read(path) == []
    report.write(path, results)
    assert report.read(path) == results
    newer = RowResult(name="grow-2", title="Growth", unit="s", sides=[])
    order = ["grow-4", "grow-2", "r", "unmeasured"]
    assert [each.name for each in report.merge(results, [newer], order)] == ["grow-4", "grow-2", "r"]
    assert report.merge(results, [newer], order)[1] is newer


def test_the_page_tells_every_row_side_and_goal(results: list[RowResult]) -> None:
    page = report.markdown(results)
    assert "| R | at least 1.5x as fast as transformers | 2.00 | querybox | yes |" in page
    assert "| R | at least 2x as fast as facebookresearch | - | not measured | **no** |" in page
    assert "| querybox | 0.5 | 0.5 - 0.5 | 0.5 | 3 | 0 | 2.00x |" in page
    assert "absent: no checkout" in page
    assert "| 4 | 0.4 |" in page
    assert page.count("torch 2; commit abc") == 1
    assert "transformers None" not in page


def test_pictures(results: list[RowResult], tmp_path: Path) -> None:
    plots.draw_rows(results, tmp_path / "rows.png")
    plots.draw_growth(results, tmp_path / "growth.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("rows.png", "growth.png"))
    plots.draw_rows([], tmp_path / "none.png")
    plots.draw_growth([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_long_titles_are_not_cut_off(results: list[RowResult], tmp_path: Path) -> None:
    """The widest letters, of which fewer fit in a line, in both columns; nothing reaches the border of the picture."""
    titled = [dataclasses.replace(each, title="WWWW " * 20) for each in results for _ in range(2)]
    plots.draw_rows(titled, tmp_path / "rows.png")
    plots.draw_growth(titled, tmp_path / "growth.png")
    for name in ("rows.png", "growth.png"):
        with Image.open(tmp_path / name) as picture:
            dark = np.asarray(picture.convert("L")) < 255
        assert dark.any()
        assert not dark[:, -3:].any()


def test_rows_are_picked_by_pattern() -> None:
    assert matches("criterion-2x7", [])
    assert matches("criterion-2x7", ["data", "criterion*"])
    assert not matches("growth-criterion-2x7", ["criterion*"])


def test_the_command_line_names_no_folder_of_the_machine() -> None:
    words = ["training", "--facebook", "/some/where", "--quick"]
    assert command(words) == "python -m benchmarks training --facebook PATH --quick"
    assert command(["--facebook=/some/where"]) == "python -m benchmarks --facebook=PATH"


def test_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "criterion*"]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    assert main(["no such row"]) == 1
    listed = capsys.readouterr().out
    families = ("inference", "training", "criterion", "memory", "data", "evaluator", "import", "help", "load")
    assert all(f"\n{family}" in f"\n{listed}" for family in families)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have processes that would be spawned, and import everything anew, forked from a server."""
    started = Mock(return_value=new_processes())
    monkeypatch.setattr(multiprocessing, "get_context", started)
    yield
    assert all(each == call("spawn") for each in started.call_args_list)


@pytest.mark.usefixtures("spawned")
def test_sides_in_separate_processes_keep_their_process() -> None:
    ask = partial(partial, os.getpid)  # builds the work of saying which process it is
    row = Row(name="", title="", sides=[Side(name=name, build=ask) for name in "ab"], difference=None)
    first, second = (side.build() for side in in_separate_processes(row).sides)
    assert first() == first()
    assert len({first(), second(), os.getpid()}) == 3


@pytest.mark.usefixtures("spawned")
def test_a_side_in_a_separate_process_reports_why_it_cannot_be_built() -> None:
    row = Row(name="", title="", sides=[Side(name="", build=partial(json.loads, "nothing"))], difference=None)
    with pytest.raises(ValueError, match="Expecting value"):
        in_separate_processes(row).sides[0].build()


@pytest.mark.parametrize("kind", training_small.TITLES)
def test_small_models_have_the_loss_of_transformers(kind: Kind, tmp_path: Path) -> None:
    setup = Setup(quick=True, folder=tmp_path)
    ours, _ = training_small.ours(setup, kind, "float32")()
    theirs, _ = training_small.transformers(setup, kind, 0)()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0.0)


def test_another_model_is_timed_and_not_compared() -> None:
    clock = Clock()
    other = measure(row(clock.side("ours", 1), clock.side("theirs", 2, 9.0, compared=False)), clock).sides[1]
    assert (other.status, other.difference, other.samples) == ("measured", None, [2.0] * 3)


ULTRALYTICS = """
import torch

class YOLO:
    def __init__(self, name):
        assert name == "yolo26n.yaml"
        print("a message of ultralytics")
        self.model = Model()

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])

    def fuse(self):
        return self

    def forward(self, image):
        assert self.model[-1].end2end and self.model[-1].export
        assert image.shape == (1, 3, 64, 64) and not self.training and torch.get_num_threads() == 1
        return image.mean()
"""


def test_yolo_runs_in_the_interpreter_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ultralytics.py").write_text(ULTRALYTICS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch.set_num_threads(1)
    setup = Setup(quick=True, folder=tmp_path, ultralytics=Path(sys.executable))
    side, *_ = yolo.sides(setup, "yolo26n", 64)
    assert (side.name, side.compared) == ("yolo26n, torch", False)
    work = side.build()
    work()
    work()
    absent = yolo.sides(Setup(quick=True, folder=tmp_path), "yolo26n", 64)[0]
    with pytest.raises(Absent, match="--ultralytics PATH"):
        absent.build()


def test_a_row_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["criterion-2x7", "--quick", "--output", str(tmp_path)]) == 0
    (result,) = report.read(tmp_path / "results.json")
    assert [side.status for side in result.sides] == ["measured", "absent", "measured"]
    assert "--facebook PATH" in result.sides[1].note
    assert result.environment["command"].endswith("--quick --output PATH")
    assert "criterion" in (tmp_path / "results.md").read_text().lower()
    assert (tmp_path / "rows.png").exists()
    assert "Report:" in capsys.readouterr().out
