from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from querybox.training import display as module
from querybox.training.checkpoint import Progress
from querybox.training.display import Display, main_console
from querybox.training.settings import TrainSettings

LOSSES = {"loss_cls": 1.0, "loss_bbox": 2.0, "loss_iou": 0.5, "d0.loss_cls": 1.5}


def show(*, terminal: bool, **settings: Any) -> str:
    """Return what is seen of a step and two epochs, of which the second is evaluated."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    progress = Progress(step=3, epoch=0, lr=1e-4, epoch_sums={"images": 48.0, "seconds": 6.0}, seconds=6)
    with Display(console, TrainSettings(epochs=4, **settings), steps_per_epoch=5) as display:
        display.step(progress, LOSSES)
        display.epoch(progress, 5.0, {})
        progress.epoch, progress.best = 1, 0.25
        display.evaluating(progress)
        display.epoch(progress, 4.0, {"AP": 0.2, "AP50": 0.4})
        progress.step = 7
        display.step(progress, LOSSES)
    return stream.getvalue()


def test_a_terminal_sees_the_last_step_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    seen = show(terminal=True)
    assert "first step" in seen
    assert "epoch 1/4  step 3/20" in seen
    assert "loss 5.000 (cls 1.000 bbox 2.000 iou 0.500)  lr 0.0001  8.0 images/s" in seen
    assert "epoch 2  evaluating" in seen
    assert "epoch 2/4  loss 4.000  AP 0.200 AP50 0.400 (best AP 0.250)  after 6s" in seen
    assert "epoch 2/4  step 7/20  best AP 0.250" in seen
    assert "8.0 images/s  AP 0.200 AP50 0.400" in seen


def test_elsewhere_lines_come_with_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(terminal=False) == "epoch 2/4  loss 4.000  AP 0.200 AP50 0.400 (best AP 0.250)  after 6s\n"
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    step, first, _, last = show(terminal=False).splitlines()
    assert step == (
        "epoch 1/4  step 3/20  loss 5.000 (cls 1.000 bbox 2.000 iou 0.500)  lr 0.0001  8.0 images/s"
    )
    assert first == "epoch 1/4  loss 5.000  after 6s"
    assert last.startswith("epoch 2/4  step 7/20  best AP 0.250  loss 5.000")
    assert last.endswith(" left")


def test_a_time_limit_that_ends_the_run_hides_the_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    lines = show(terminal=False, max_time=10).splitlines()
    assert lines[0].startswith("epoch 1  step 3  loss")
    assert lines[0].endswith("4s left")
    assert lines[1] == "epoch 1  loss 5.000  after 6s"


def display_of(**settings: Any) -> Display:
    """Return the display of a run of 4 epochs of 5 steps that made its first step at the time 0."""
    display = Display(None, TrainSettings(epochs=4, **settings), steps_per_epoch=5)
    display.timed_from = 1, 0.0
    return display


def test_the_time_left_is_that_of_the_budget_where_it_ends_first() -> None:
    display = display_of(max_time=10)
    assert display.seconds_left(Progress(step=3, seconds=6), 1.0) == 4.0
    assert display.seconds_left(Progress(step=18, seconds=6), 17.0) == 2.0
    assert display.seconds_left(Progress(step=2, seconds=12), 1.0) == 0.0
    assert display.seconds_left(Progress(step=1, seconds=6), 0.0) == 4.0
    assert display_of().seconds_left(Progress(step=1, seconds=6), 0.0) is None
    assert display_of().seconds_left(Progress(step=3, seconds=6), 1.0) == 8.5


def test_the_bar_goes_by_time_or_by_steps_whichever_ends_first() -> None:
    assert display_of().fraction(Progress(step=5, seconds=9)) == 0.25
    limited = display_of(max_time=10)
    assert limited.fraction(Progress(step=5, seconds=9)) == 0.9
    assert limited.fraction(Progress(step=5, seconds=1)) == 0.25
    assert limited.fraction(Progress(step=5, seconds=12)) == 1.0


@pytest.mark.parametrize(
    ("seconds", "settings", "line"),
    [
        (40.0, {}, "10 steps to go, about 1m20s\n"),
        (1.0, {}, ""),  # soon over
        (40.0, {"max_time": 1000}, ""),  # says itself how long it takes
    ],
)
def test_the_duration_is_announced_after_the_first_steps(
    seconds: float, settings: dict[str, Any], line: str
) -> None:
    display, stream = display_of(**settings), io.StringIO()
    display.console = Console(file=stream)
    display.timed_from = 5, 0.0
    for step in (9, 10, 11):
        progress = Progress(step=step)
        display.announce(progress, display.seconds_left(progress, seconds))
    assert stream.getvalue() == line


def test_other_processes_show_nothing() -> None:
    with Display(None, TrainSettings(), steps_per_epoch=5) as display:
        display.step(Progress(step=1, epoch_sums={"images": 1.0, "seconds": 1.0}), LOSSES)
        display.evaluating(Progress(step=1))
        display.epoch(Progress(step=1), 1.0, {"AP": 0.1, "AP50": 0.2})


@pytest.fixture(params=["pipe", "terminal", "full disk", "closed", "none"])
def broken_stderr(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let stderr be a pipe that nobody reads, a terminal that is gone, a file on a full disk, closed or absent."""
    if request.param == "none":
        monkeypatch.setattr(sys, "stderr", None)
        yield
        return
    if request.param in ("pipe", "terminal"):
        reader, writer = os.pipe() if request.param == "pipe" else os.openpty()
        os.close(reader)
    else:
        path = {"full disk": "/dev/full", "closed": os.devnull}[request.param]
        if not Path(path).exists():
            pytest.skip(f"there is no {path}")
        writer = os.open(path, os.O_WRONLY)
    with os.fdopen(writer, "w", buffering=1) as stream:
        if request.param == "closed":
            stream.close()
        else:
            with pytest.raises(OSError, match=r"Errno"):
                print("", file=stream)
        monkeypatch.setattr(sys, "stderr", stream)
        yield
        with suppress(OSError, ValueError):
            stream.flush()
        monkeypatch.undo()
        with suppress(OSError):
            stream.close()


@pytest.mark.usefixtures("broken_stderr")
def test_a_display_that_cannot_be_shown_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    progress = Progress(step=3, epoch_sums={"images": 48.0, "seconds": 6.0}, best=0.2)
    console = main_console()
    for terminal in (False, True):
        assert console is not None
        console._force_terminal = terminal
        with Display(console, TrainSettings(), steps_per_epoch=5) as display:
            assert (display.bar is not None) == terminal
            display.step(progress, LOSSES)
            display.epoch(progress, 4.0, {"AP": 0.2, "AP50": 0.4})
            display.print_line("the end")
