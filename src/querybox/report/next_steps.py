"""What to do after a run or an evaluation, most important first."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from querybox.checkpoints.find import BEST, LAST
from querybox.diagnosis import Diagnosis
from querybox.evaluation.result import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing to do next."""

    text: str
    command: str = ""
    """The command that does it, if any."""


def next_steps(folder: Path, evaluation: Evaluation, diagnosis: Diagnosis | None) -> list[Step]:
    """Return what to do next.

    Args:
        folder: The folder of the run or of the evaluation.
        evaluation: Its metrics and errors.
        diagnosis: The diagnosis of the run, if any.
    """
    steps = []
    if diagnosis is not None and diagnosis.findings:
        first = diagnosis.findings[0]
        steps.append(Step(text=f"To raise the AP: {first.cause} {first.cure}"))
    if error := most_frequent_error(evaluation):
        steps.append(
            Step(text=f"Look at the worst images below. {error} Wrong or missing labels show up there.")
        )
    if any((folder / name).is_file() for name in (BEST, LAST)):
        run = shlex.quote(str(folder))
        # Rounded down: the threshold is the score of a detection that is to be kept.
        threshold = f"--threshold {math.floor(evaluation.operating_point.threshold * 100) / 100:.2f}"
        steps += [
            Step(text="Detect objects in new images:", command=f"querybox predict {run} IMAGES {threshold}"),
            Step(
                text="Export for ONNX Runtime, without PyTorch:", command=f"querybox export {run} --to onnx"
            ),
        ]
    return steps


def most_frequent_error(evaluation: Evaluation) -> str:
    """Return a sentence about the most frequent type of error; empty if there are no errors."""
    # The objects of false positives, if any, are false negatives of the same type.
    counts = Counter(evaluation.false_positives)
    counts["missed"] = evaluation.false_negatives.get("missed", 0)
    ((name, count),) = counts.most_common(1)
    return f"Of {counts.total():,} errors, {count:,} are of the type '{name}'." if count else ""
