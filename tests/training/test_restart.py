"""Training that goes on from the best average when strong augmentation ends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from crashes import Crash, crash_in, same
from safetensors.torch import load_file
from torch import nn

from querybox.training import RunSettings, loop, train
from querybox.training.checkpoint import RunCheckpoint
from querybox.training.ema import MovingAverage
from querybox.training.loop import Trainer

NOT_MEASURED = SimpleNamespace(metrics={})
pytestmark = pytest.mark.usefixtures("without_shape_checks")


def test_the_best_average_goes_on_when_strong_augmentation_ends(
    run_settings: Callable[..., RunSettings],
    boxes_json: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After two of three epochs; also in a run that goes on from a checkpoint before or after that."""
    monkeypatch.setattr("querybox.training.run.write_report", lambda *_: "")
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("querybox.training.run.evaluate_together", lambda *_: NOT_MEASURED)
    restart, restarts = MovingAverage.restart, []

    def first_is_best(trainer: Trainer, *_: object) -> dict[str, float]:
        progress = trainer.progress
        if progress.step == trainer.steps_per_epoch:
            progress.best, progress.best_step = 0.5, progress.step
        return {}

    def noted(average: MovingAverage[nn.Module], model: nn.Module, path: Path) -> None:
        before = copy.deepcopy(model.state_dict())
        restart(average, model, path)
        best = load_file(path)
        for weights in (model.state_dict(), average.model.state_dict()):
            torch.testing.assert_close(weights, best, rtol=0, atol=0)
        restarts.append(any(not torch.equal(before[name], best[name]) for name in best))

    monkeypatch.setattr(Trainer, "measure", first_is_best)
    monkeypatch.setattr(MovingAverage, "restart", noted)

    def settings(output: str) -> RunSettings:
        data = {"val": str(boxes_json), "strong_until": 0.6}
        return run_settings(output, epochs=3, ema=0.5, ema_restart=0.9, data=data)

    whole = train(settings("whole")).run_dir
    progress = RunCheckpoint.read(whole / "checkpoint.safetensors").progress
    assert (restarts, progress.restarted, progress.best_step) == ([True], True, 2)
    for update, made in ((5, 2), (6, 1)):  # before and after
        restarts.clear()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "MAX_CHECKPOINT_SECONDS", 0.0 if update == 6 else 600.0)
            crash_in(patch, Trainer, "update", update)
            with pytest.raises(Crash):
                train(settings(f"crash {update}"))
        parts = train(settings(f"crash {update}"), resume=True).run_dir
        assert len(restarts) == made
        same(parts, whole, "checkpoint", "last", "best")


def test_strong_augmentation_that_begins_again_with_more_epochs_ends_again(
    run_settings: Callable[..., RunSettings], boxes_json: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.training.run.write_report", lambda *_: "")
    monkeypatch.setattr(Trainer, "measure", lambda *_: {})
    made = []
    restart = Trainer.restart_if_due

    def noted(trainer: Trainer, elapsed: float) -> None:
        restart(trainer, elapsed)
        assert trainer.average is not None
        made.append((trainer.progress.restarted, trainer.average.decay))

    monkeypatch.setattr(Trainer, "restart_if_due", noted)
    settings = run_settings(
        epochs=2, ema=0.5, ema_restart=0.9, data={"val": str(boxes_json), "strong_until": 0.5}
    )
    train(settings)
    train(settings, resume=True, epochs=5)
    before, after = (False, 0.5), (True, 0.9)
    assert made == [before, after, before, after, after]
