"""A run as seen by a diagnosis: settings, history of the metrics, recorded facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from querybox.data import DataSettings
from querybox.diagnosis.record import Record, read_history, read_record
from querybox.errors import ConfigError
from querybox.models import Recipe, parse
from querybox.runfile import read_run_file
from querybox.settings import describe

POOR_AP50 = 0.3
"""Below this AP50, something may prevent the model from learning."""
POOR_FIT = 0.6
"""The same for the mean GIoU of the boxes on the training images, if AP was not measured."""

UNSURE = 0.1
"""If the mean top score of the images is lower than this, all queries predict no object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of ``train`` that a diagnosis uses; see `querybox.training.TrainSettings`."""

    lr: float
    backbone_lr: float
    epochs: int
    warmup_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """The content of a run's ``run.yaml`` that a diagnosis uses."""

    train: Plan
    model: dict[str, Any]
    data: DataSettings
    weights: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The facts about a run."""

    plan: Plan
    recipe: Recipe
    fine_tuned: bool
    """Whether the run started from a trained detector."""
    image_size: int
    """Short side of the model's input in pixels."""
    history: Mapping[str, Sequence[float]]
    """The columns of ``metrics.csv``."""
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the run in `folder`.

        Raises:
            ConfigError: There is no run, or its settings are invalid.
            DataError: Its record is corrupt.
        """
        path = folder / "run.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{folder}: contains no run.yaml; expected the folder of a training run: check the path"
            )
        values = read_run_file(path)
        try:
            settings = TypeAdapter(RunFile).validate_python(values)
        except ValidationError as error:
            raise ConfigError(
                f"{path}: {describe(error.errors()[0], [])}; expected a file written by a training run"
            ) from None
        return cls(
            plan=settings.train,
            recipe=parse(settings.model, where=str(path)),
            fine_tuned=settings.weights is not None,
            image_size=settings.data.image_size,
            history=read_history(folder / "metrics.csv"),
            record=read_record(folder),
        )

    @property
    def steps(self) -> int:
        """Number of updates."""
        return int(self.history["step"][-1]) if self.history else 0

    @property
    def losses(self) -> list[float]:
        """Finite mean losses of the epochs."""
        return [loss for loss in self.history.get("loss", ()) if math.isfinite(loss)]

    @property
    def ap50s(self) -> list[float]:
        """Finite AP50 of the evaluations."""
        return [value for value in self.history.get("AP50", ()) if math.isfinite(value)]

    @property
    def poor(self) -> bool:
        """Whether the model has not learned to detect objects, by its AP50, or by its boxes if there is no AP50."""
        if self.ap50s:
            return max(self.ap50s) < POOR_AP50
        return self.fit is None or self.fit < POOR_FIT

    @property
    def fit(self) -> float | None:
        """Mean GIoU of matched boxes and objects, on the augmented training images of the last epoch."""
        loss = self.history.get("loss_iou", [math.nan])[-1]
        return 1 - loss / self.recipe.criterion().giou_weight if math.isfinite(loss) else None

    def decrease(self, column: str = "loss") -> float | None:
        """Return the relative decrease of a loss from the second third of the epochs to the last third."""
        losses = [loss for loss in self.history.get(column, ()) if math.isfinite(loss)]
        if len(losses) < 2:
            return None
        third = max(1, len(losses) // 3)
        before, last = mean(losses[-2 * third : -third]), mean(losses[-third:])
        return 1 - last / before

    @property
    def stride(self) -> int:
        """Stride of the finest feature map in pixels of the input."""
        return self.recipe.finest_stride


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
