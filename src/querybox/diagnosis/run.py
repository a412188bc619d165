"""A run as seen by a diagnosis: settings, history of the metrics, recorded facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ValidationError

from querybox.data import DataSettings
from querybox.diagnosis.record import Record, read_history, read_record
from querybox.errors import ConfigError
from querybox.models import Recipe, parse
from querybox.precision import present_name
from querybox.runfile import RUN_FILE, read_run_file
from querybox.settings import describe, type_adapter

POOR_AP50 = 0.3
"""Below this AP50, something may prevent the model from learning."""
POOR_FIT = 0.6
"""Below this mean GIoU of the boxes on the training images, something may, too, if AP was not measured."""

UNSURE = 0.1
"""If the mean top score of the images is lower than this, all queries predict no object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The settings of ``train`` that a diagnosis uses; see `querybox.training.TrainSettings`."""

    lr: float
    backbone_lr: float
    epochs: int
    warmup_steps: int
    weight_decay: float = 0.0
    clip: float | None = None
    max_time: float | None = None
    patience: int | None = None
    freeze: tuple[str, ...] = ()
    precision: Annotated[str, BeforeValidator(present_name)] = "float32"


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
    data: DataSettings
    history: Mapping[str, Sequence[float]]
    """The columns of ``metrics.csv``."""
    record: Record

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the run in `folder`.

        Raises:
            ConfigError: There is no run, or its settings are invalid.
            DataError: Its record or its metrics are corrupt.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise ConfigError(
                f"{folder}: contains no {RUN_FILE}; expected the folder of a training run: check the path"
            )
        values = read_run_file(path)
        try:
            settings: RunFile = type_adapter(RunFile).validate_python(values)
        except ValidationError as error:
            raise ConfigError(
                f"{path}: {describe(error.errors()[0], [])}; expected a file written by a training run"
            ) from None
        return cls(
            plan=settings.train,
            recipe=parse(settings.model, where=str(path)),
            fine_tuned=settings.weights is not None,
            data=settings.data,
            history=read_history(folder),
            record=read_record(folder),
        )

    @property
    def steps(self) -> int:
        """Number of updates."""
        return int(self.history["step"][-1]) if self.history else 0

    @property
    def random_backbone(self) -> bool:
        """Whether the backbone started from random weights."""
        return self.recipe.backbone_weights is None and not self.fine_tuned

    def finite(self, column: str) -> list[float]:
        """Return the values of a column of the history that are neither NaN nor infinite, such as those of ``loss``."""
        return [value for value in self.history.get(column, ()) if math.isfinite(value)]

    @property
    def poor(self) -> bool:
        """Whether the model has not learned to detect objects, by its AP50, or by its boxes if there is no AP50."""
        if scores := self.finite("AP50"):
            return max(scores) < POOR_AP50
        return self.fit is None or self.fit < POOR_FIT

    @property
    def fit(self) -> float | None:
        """Mean GIoU of matched boxes and objects, on the augmented training images of the last epoch."""
        loss = self.history.get("loss_iou", [math.nan])[-1]
        return 1 - loss / self.recipe.criterion().giou_weight if math.isfinite(loss) else None

    def decrease(self, column: str = "loss") -> float | None:
        """Return the relative decrease of a loss from the second third of the epochs to the last third."""
        losses = self.finite(column)
        if len(losses) < 2:
            return None
        third = max(1, len(losses) // 3)
        before, last = fmean(losses[-2 * third : -third]), fmean(losses[-third:])
        return 1 - last / before

    def longer(self, steps: int) -> str:
        """Return what to set so that the run makes this many updates, more than it has made."""
        factor = steps / self.steps
        epochs = math.ceil(factor * self.history["epoch"][-1])
        seconds = factor * self.history.get("seconds", [math.nan])[-1]
        limited = self.plan.max_time is not None and not seconds <= self.plan.max_time
        changes = []
        if self.plan.epochs < epochs:
            changes.append(f"train.epochs={epochs}")
        if self.record.ended == "time" or limited:
            known = math.isfinite(seconds)
            changes.append(
                f"train.max_time={math.ceil(seconds / 60)}m" if known else "a longer train.max_time"
            )
        if self.record.ended == "patience":
            changes.append(f"a larger train.patience than {self.plan.patience}")
        return f"Set {' and '.join(changes)}" if changes else "Resume the run (--resume)"
