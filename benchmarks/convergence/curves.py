"""Curves of a model's accuracy over minutes of training."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from querybox.data import DetectionData
from querybox.evaluation.evaluate import evaluate
from querybox.inference.engine import Engine, evaluating

MARKS = (1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 50)
"""Minutes of training after which a model is evaluated, in addition to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model after some training."""

    minutes: float
    """The mark."""
    seconds: float
    """Training time until the end of the step in which the mark was reached."""
    steps: int
    epochs: float
    AP: float
    AP50: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """All points of a model, and its settings."""

    name: str
    title: str
    settings: dict[str, Any]
    """All settings that affect the result; the curve is reused while they are unchanged."""
    points: list[Point]
    environment: dict[str, Any]


CURVE = TypeAdapter(Curve)


def marks(minutes: float) -> list[float]:
    """Return the minutes at which to evaluate within a time limit."""
    return [*(mark for mark in MARKS if mark < minutes), minutes]


class Watch:
    """Evaluates a model at given times of its training.

    Attributes:
        points: The results so far.
    """

    def __init__(self, name: str, minutes: float, validation: DetectionData, steps_per_epoch: int) -> None:
        self.name = name
        self.marks = marks(minutes)
        self.validation = validation
        self.steps_per_epoch = steps_per_epoch
        self.points: list[Point] = []

    def evaluate_if_due(self, seconds: float, steps: int, engine: Engine) -> float:
        """Evaluate `engine` if a mark has been reached; return the seconds this took.

        Args:
            seconds: Training time so far.
            steps: Training steps so far.
            engine: The current model.
        """
        due = [mark for mark in self.marks if 60 * mark <= seconds]
        if not due:
            return 0.0
        started = time.perf_counter()
        del self.marks[: len(due)]
        with evaluating(engine):
            metrics = evaluate(engine, self.validation).metrics
        point = Point(
            minutes=due[-1],
            seconds=seconds,
            steps=steps,
            epochs=steps / self.steps_per_epoch,
            AP=metrics["AP"],
            AP50=metrics["AP50"],
        )
        self.points.append(point)
        print(
            f"{self.name}: {point.minutes:g} minutes, {steps} steps, {point.epochs:.1f} epochs: "
            f"AP {point.AP:.3f} AP50 {point.AP50:.3f}",
            flush=True,
        )
        return time.perf_counter() - started


def read(path: Path) -> Curve | None:
    """Return a curve measured earlier, or None."""
    return CURVE.validate_json(path.read_bytes()) if path.exists() else None


def write(path: Path, curve: Curve) -> None:
    """Write a curve as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(curve), indent=1) + "\n", encoding="utf-8")
