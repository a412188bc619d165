"""A curve: how well a model detects after each of some minutes of training."""

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
"""Minutes of training after which a model is evaluated, beside the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A model after some training."""

    minutes: float
    """The mark."""
    seconds: float
    """Of training alone, until the end of the step in which the mark came."""
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


def marks(minutes: float) -> list[float]:
    """Return when to evaluate in a budget of so many minutes."""
    return [*(mark for mark in MARKS if mark < minutes), minutes]


class Watch:
    """Looks at a training after every step, and evaluates its model at the marks.

    Attributes:
        points: What was found.
    """

    def __init__(self, name: str, minutes: float, validation: DetectionData, steps_per_epoch: int) -> None:
        self.name = name
        self.marks = marks(minutes)
        self.validation = validation
        self.steps_per_epoch = steps_per_epoch
        self.points: list[Point] = []

    def look(self, seconds: float, steps: int, engine: Engine) -> float:
        """Evaluate `engine` if a mark has come; return how many seconds that took.

        Args:
            seconds: Spent on training so far.
            steps: Made so far.
            engine: The model as it stands.
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
    """Return a curve that was measured earlier, if there is one."""
    return CURVE.validate_json(path.read_bytes()) if path.exists() else None


def write(path: Path, curve: Curve) -> None:
    """Write a curve as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(curve), indent=1) + "\n")
