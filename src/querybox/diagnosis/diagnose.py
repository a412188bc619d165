"""Why a run's AP is what it is: all rules, held against its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from querybox.diagnosis import answers, data, schedule
from querybox.diagnosis.finding import HEADS, Finding
from querybox.diagnosis.record import RECORD
from querybox.diagnosis.run import Run
from querybox.html import render

Rule = Callable[[Run], Finding | None]
# Of two that explain the same, the first counts as the likelier.
CAUSES: tuple[Rule, ...] = (
    schedule.lr_too_high,
    schedule.failed,
    schedule.lr_too_low,
    schedule.frozen_parts,
    data.mixed_up_labels,
    data.faulty_boxes,
    data.repeated_objects,
    data.too_many_objects,
    data.tiny_objects,
    data.unseen_classes,
    schedule.too_few_steps,
    schedule.warmup_too_long,
    schedule.overfitting,
    answers.no_object_collapse,
    schedule.random_backbone,
)
ANSWERS: tuple[Rule, ...] = (
    answers.duplicates,
    answers.blind_queries,
    answers.confused_classes,
    answers.loose_boxes,
)
SUFFICIENT = 0.9
"""Where a cause explains so much, nothing could be learnt, and what the queries answer says no more."""
NEGLIGIBLE = 0.05
"""What explains less of the missing AP is not worth a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What a run's record says about its AP."""

    run: str
    """The folder."""
    AP: float | None
    """Of the last evaluation; None if there was none."""
    AP50: float | None
    epochs: int
    """That were trained, the last one perhaps in part."""
    steps: int
    """Updates made."""
    ended: str | None
    """Why the run ended; None if it is still going on, was killed, or did not say."""
    findings: tuple[Finding, ...]
    """Most likely cause first; none if nothing is wrong that the record shows."""
    missing: tuple[str, ...]
    """What the record lacks, and what could therefore not be looked at."""

    def _repr_html_(self) -> str:
        """Show the findings in Jupyter."""
        shown = {"AP": self.AP, "AP50": self.AP50}
        scores = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
        notes = [
            f"{self.run}: {', '.join(scores) or 'no AP'} after {self.steps:,} steps, {self.epochs:,} epochs",
            *([] if self.findings else ["No problem found in the record of the run."]),
            *(f"Not examined: {note}." for note in self.missing),
        ]
        rows = [finding.row() for finding in self.findings]
        return render("notebook/diagnosis.html", notes=notes, heads=HEADS, rows=rows)


def diagnose(run: str | Path) -> Diagnosis:
    """Say why a run's AP is low, from its own record; nothing is trained or evaluated.

    Args:
        run: The folder of a training run, ended or still going on.

    Raises:
        ConfigError: It is not the folder of a run.
        DataError: Its record is damaged.
    """
    known = Run.read(Path(run))
    history = known.history
    return Diagnosis(
        run=str(run),
        AP=latest(history.get("AP", ())),
        AP50=latest(history.get("AP50", ())),
        epochs=int(history["epoch"][-1]) if history else 0,
        steps=known.steps,
        ended=known.record.ended,
        findings=tuple(examine(known)),
        missing=tuple(what_is_missing(known)),
    )


def examine(run: Run) -> list[Finding]:
    """Return what the rules find, most likely cause first."""
    found = apply(CAUSES, run)
    if not any(finding.explains >= SUFFICIENT for finding in found):
        found += apply(ANSWERS, run)
    return sorted(found, key=lambda finding: -finding.explains)


def apply(rules: Iterable[Rule], run: Run) -> list[Finding]:
    """Return what the rules find, in their order."""
    findings = (rule(run) for rule in rules)
    return [finding for finding in findings if finding and finding.explains >= NEGLIGIBLE]


def latest(values: Sequence[float]) -> float | None:
    """Return the last number that is one."""
    return next((value for value in reversed(values) if math.isfinite(value)), None)


def what_is_missing(run: Run) -> Iterator[str]:
    """Say what was not looked at for want of it."""
    record = run.record
    if not run.history:
        yield "metrics.csv has no row: no epoch was ended"
    if record.parts is None:
        yield (
            f"there is no {RECORD}, as the run is of an older version: sizes and numbers of the objects, the weights "
            "beside their learning rates, and what the queries answer were not looked at"
        )
    elif record.validation is None:
        yield "there are no data to evaluate on (data.val): nothing is known but the losses"
    elif record.evaluation is None:
        yield "the run has not been evaluated yet: what the queries answer was not looked at"
