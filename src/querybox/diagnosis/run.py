"""A run as its record tells it: settings, the course of the losses, the facts."""

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
"""A run that reaches this learns; below it, something may keep it from learning."""
POOR_FIT = 0.6
"""The same for the mean GIoU of the boxes on the training images, where no AP was measured."""

UNSURE = 0.1
"""Where the best scores of the images are lower than this, every query says that there is nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of ``train`` that a diagnosis looks at; see `querybox.training.TrainSettings`."""

    lr: float
    backbone_lr: float
    epochs: int
    warmup_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """What a diagnosis looks at in a run's ``run.yaml``, all of whose values are written out."""

    train: Plan
    model: dict[str, Any]
    data: DataSettings
    weights: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is known of a run."""

    plan: Plan
    recipe: Recipe
    fine_tuned: bool
    """Whether it started from a trained detector."""
    image_size: int
    """Short side of the model's input, pixels."""
    history: Mapping[str, Sequence[float]]
    """The columns of ``metrics.csv``."""
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the run in `folder`.

        Raises:
            ConfigError: There is no run, or its settings are not those of one.
            DataError: Its record is damaged.
        """
        path = folder / "run.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{folder}: holds no run.yaml; expected the folder of a training run: check the path"
            )
        values = read_run_file(path)
        try:
            settings = TypeAdapter(RunFile).validate_python(values)
        except ValidationError as error:
            raise ConfigError(
                f"{path}: {describe(error.errors()[0], [])}; expected the file that a training run wrote"
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
        """Updates made."""
        return int(self.history["step"][-1]) if self.history else 0

    @property
    def losses(self) -> list[float]:
        """The mean loss of each epoch, those that are not finite left out."""
        return [loss for loss in self.history.get("loss", ()) if math.isfinite(loss)]

    @property
    def ap50s(self) -> list[float]:
        """AP50 of each evaluation."""
        return [value for value in self.history.get("AP50", ()) if math.isfinite(value)]

    @property
    def poor(self) -> bool:
        """Whether the run has not learnt to find objects: by AP50, or by the boxes where that was not measured."""
        if self.ap50s:
            return max(self.ap50s) < POOR_AP50
        return self.fit is None or self.fit < POOR_FIT

    @property
    def fit(self) -> float | None:
        """Mean GIoU of objects and the boxes that answer for them, on the varied training images of the last epoch."""
        loss = self.history.get("loss_iou", [math.nan])[-1]
        return 1 - loss / self.recipe.criterion().giou_weight if math.isfinite(loss) else None

    def fall(self, column: str = "loss") -> float | None:
        """Return how much lower a loss is in the last third of the epochs than in the third before; a share of it."""
        losses = [loss for loss in self.history.get(column, ()) if math.isfinite(loss)]
        if len(losses) < 2:
            return None
        third = max(1, len(losses) // 3)
        before, last = mean(losses[-2 * third : -third]), mean(losses[-third:])
        return 1 - last / before

    @property
    def cell(self) -> int:
        """Pixels of the input a side that a cell of the finest feature map stands for."""
        return self.recipe.finest_stride


def mean(values: Sequence[float]) -> float:
    """Return the mean of some values."""
    return sum(values) / len(values)
