"""querybox's models, trained from a run file as by `querybox train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.convergence.curves import Watch
from querybox.data import DetectionData, train_loader
from querybox.interrupt import StopRequest
from querybox.runfile import merge, read_run_file
from querybox.training import RunSettings
from querybox.training.checkpoint import Progress
from querybox.training.display import Display
from querybox.training.loop import Trainer
from querybox.training.processes import start_processes
from querybox.training.start import build_detector, resolve

FOLDER = Path(__file__).parent
OURS = {
    "detr_small": "querybox DETR",
    "deformable_detr_small": "querybox Deformable DETR",
    "dino_small": "querybox DINO",
    "rtdetr_small": "querybox RT-DETR",
    "dfine_small": "querybox D-FINE",
}
"""Titles by the names of the run files in this folder."""


def settings(name: str, minutes: float, data: Path | None = None) -> RunSettings:
    """Return the settings of a run; for other implementations, only those that all models share.

    Args:
        name: Name of the model.
        minutes: Time limit.
        data: Another dataset to use instead.
    """
    values = read_run_file(FOLDER / "common.yaml")
    if name in OURS:
        values = merge(values, read_run_file(FOLDER / f"{name}.yaml"))
    run = RunSettings.parse(values, where=name)
    if data is not None:
        run = run.replace(data=run.data.replace(train=str(data)))
    return run.replace(train=run.train.replace(max_time=60 * minutes))


def train_ours(run: RunSettings, training: DetectionData, watch: Watch, folder: Path) -> None:
    """Train one of querybox's models until its time limit; `folder`, which must be empty, gets its weights."""
    run = resolve(run.replace(output=str(folder)))
    torch.manual_seed(run.train.seed)
    detector = build_detector(run, training.categories)
    assert detector.recipe is not None
    loader = train_loader(training, run.data, batch_size=run.train.batch_size, seed=run.train.seed)
    criterion = detector.recipe.criterion()
    trainer = Trainer(detector, criterion, loader, run, accelerator=start_processes(run))
    with StopRequest() as request, WatchedDisplay(trainer, watch) as display:
        reason = trainer.fit(display, request)
    if reason == "signal":
        request.reraise()


class WatchedDisplay(Display):
    """A display that also calls a watch, whose time does not count as training time."""

    def __init__(self, trainer: Trainer, watch: Watch) -> None:
        super().__init__(Console(stderr=True), trainer.settings, steps_per_epoch=trainer.steps_per_epoch)
        self.trainer = trainer
        self.watch = watch

    def step(self, progress: Progress, losses: Mapping[str, float]) -> None:
        """Show the update, and evaluate if a mark has been reached."""
        super().step(progress, losses)
        self.trainer.started += self.watch.evaluate_if_due(
            progress.seconds, progress.step, self.trainer.current_detector
        )
