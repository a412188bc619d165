"""A curve: how well a model detects after each of some minutes of training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from querybox.data import DetectionData
from querybox.engine import Engine
from querybox.evaluate import evaluate

MARKS = (1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 50)
"""Minutes of training after which a model is evaluated, beside the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model after some training."""

    minutes: float
    """The mark that it was trained until."""
    seconds: float
    """Of training, evaluations and building not counted; the last step ends after the mark."""
    steps: int
    epochs: float
    AP: float
    AP50: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """All points of a model, and what was trained."""

    name: str
    title: str
    settings: dict[str, Any]
    """All that decides on the result; a curve is kept as long as they are the same."""
    points: list[Point]
    environment: dict[str, Any]


CURVE = TypeAdapter(Curve)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How far a training has come, and the model that it has."""

    seconds: float
    steps: int
    engine: Engine


class Trainee(Protocol):
    """Something that is trained in parts."""

    def train_until(self, seconds: float) -> Trained:
        """Go on until it was trained for so long, all parts together."""


def marks(minutes: float) -> list[float]:
    """Return when to evaluate in a budget of so many minutes."""
    return [*(mark for mark in MARKS if mark < minutes), minutes]


def follow(
    trainee: Trainee, minutes: Sequence[float], validation: DetectionData, steps_per_epoch: int
) -> Iterator[Point]:
    """Train from mark to mark and evaluate at each; end early where there is nothing more to train."""
    steps = 0
    for mark in minutes:
        now = trainee.train_until(60 * mark)
        if now.steps == steps:
            return
        steps = now.steps
        metrics = evaluate(now.engine, validation).metrics
        yield Point(
            minutes=mark,
            seconds=now.seconds,
            steps=steps,
            epochs=steps / steps_per_epoch,
            AP=metrics["AP"],
            AP50=metrics["AP50"],
        )


def read(path: Path) -> Curve | None:
    """Return a curve that was measured earlier, if there is one."""
    return CURVE.validate_json(path.read_bytes()) if path.exists() else None


def write(path: Path, curve: Curve) -> None:
    """Write a curve as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(curve), indent=1) + "\n")
