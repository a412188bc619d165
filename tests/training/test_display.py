from __future__ import annotations

import io

import pytest
from rich.console import Console

from querybox.training import display as module
from querybox.training.checkpoint import Progress
from querybox.training.display import Display
from querybox.training.settings import TrainSettings

LOSSES = {"loss_cls": 1.0, "loss_bbox": 2.0, "loss_iou": 0.5, "d0.loss_cls": 1.5}


def show(*, terminal: bool) -> str:
    """Return what is seen of a step and two epochs, of which the second is evaluated."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    settings = TrainSettings(epochs=4)
    progress = Progress(step=3, epoch=0, epoch_sums={"images": 48.0, "seconds": 6.0}, seconds=6)
    with Display(console, settings, steps_per_epoch=5) as display:
        display.step(progress, LOSSES, lr=1e-4)
        display.epoch(progress, 5.0, {})
        progress.epoch, progress.best = 1, 0.25
        display.epoch(progress, 4.0, {"AP": 0.2, "AP50": 0.4})
    return stream.getvalue()


def test_a_terminal_sees_the_last_step_with_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFRESH_SECONDS", 0.0)
    seen = show(terminal=True)
    assert "epoch 1/4  step 3/20" in seen
    assert "loss 5.000 (cls 1.000 bbox 2.000 iou 0.500)  lr 0.0001  8.0 images/s" in seen
    assert "epoch 2/4  loss 4.000  AP 0.200 AP50 0.400 (best AP 0.250)  after 6s" in seen


def test_elsewhere_lines_come_with_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert show(terminal=False) == "epoch 2/4  loss 4.000  AP 0.200 AP50 0.400 (best AP 0.250)  after 6s\n"
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    step, first, _ = show(terminal=False).splitlines()
    assert step.startswith("epoch 1/4  step 3/20  loss 5.000 (cls")
    assert step.endswith("left")
    assert first == "epoch 1/4  loss 5.000  after 6s"


def test_the_time_left_is_that_of_the_budget_where_it_ends_first() -> None:
    settings = TrainSettings(epochs=4, max_time=10)
    display = Display(None, settings, steps_per_epoch=5)
    assert display.seconds_left(Progress(step=2, seconds=6), 1.0) == 4.0
    assert display.seconds_left(Progress(step=18, seconds=6), 18.0) == 2.0
    assert display.seconds_left(Progress(step=2, seconds=12), 1.0) == 0.0


def test_other_processes_show_nothing() -> None:
    with Display(None, TrainSettings(), steps_per_epoch=5) as display:
        display.step(Progress(step=1), LOSSES, lr=1e-4)
        display.epoch(Progress(step=1), 1.0, {})
