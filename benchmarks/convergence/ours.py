"""querybox's own models, trained by `querybox.train`, from a run file as anyone would write it."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.convergence.curves import Trained
from querybox.data import DetectionData
from querybox.runfile import merge, read_run_file
from querybox.training import RunSettings, train

FOLDER = Path(__file__).parent
OURS = {
    "detr_small": "querybox DETR",
    "deformable_detr_small": "querybox Deformable DETR",
    "dino_small": "querybox DINO",
}
"""Titles by the names of the run files beside this one."""


def settings(name: str, minutes: float, data: Path | None = None) -> RunSettings:
    """Return the settings of a run; of a model that is not ours, only what all have in common.

    Args:
        name: Of the model.
        minutes: The budget; one other than the file's has as many more or fewer epochs.
        data: The dataset, where it is another one.
    """
    values = read_run_file(FOLDER / "common.yaml")
    if name in OURS:
        values = merge(values, read_run_file(FOLDER / f"{name}.yaml"))
    if data is not None:
        values["data"]["train"] = str(data)
    run = RunSettings.parse(values, where=name)
    assert run.train.max_time is not None
    epochs = max(1, round(run.train.epochs * 60 * minutes / run.train.max_time))
    return run.replace(train=run.train.replace(epochs=epochs, max_time=60 * minutes))


class Ours:
    """A run that is stopped at every mark, and resumed from its folder.

    It knows no validation data: it is evaluated between its parts, so that this takes none of its time.
    """

    def __init__(self, run: RunSettings, training: DetectionData, folder: Path) -> None:
        """Set up the run; the folder must be empty or not there."""
        data = run.data.replace(train=str(training.source))
        self.run = run.replace(data=data, output=str(folder))
        self.folder = folder

    def train_until(self, seconds: float) -> Trained:
        """Go on until the run has taken so long."""
        part = self.run.replace(train=self.run.train.replace(max_time=seconds))
        result = train(part, resume=(self.folder / "run.yaml").exists())
        with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            *_, last = csv.DictReader(file)
        return Trained(seconds=float(last["seconds"]), steps=int(last["step"]), engine=result.detector)
