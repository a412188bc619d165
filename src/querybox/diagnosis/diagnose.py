"""Apply all rules to the record of a run, to find likely causes of a low AP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from querybox.arguments import require_path
from querybox.diagnosis import data, predictions, schedule
from querybox.diagnosis.finding import HEADS, Finding
from querybox.diagnosis.record import RECORD
from querybox.diagnosis.run import Run
from querybox.html import render
from querybox.text import counted

Rule = Callable[[Run], Finding | None]
# Of two findings that explain the same fraction, the first is reported first.
CAUSES: tuple[Rule, ...] = (
    schedule.lr_too_high,
    schedule.failed,
    schedule.lr_too_low,
    schedule.weight_decay_too_high,
    schedule.clip_too_low,
    schedule.frozen_parts,
    data.mixed_up_labels,
    data.faulty_boxes,
    data.repeated_objects,
    data.too_many_objects,
    data.tiny_objects,
    data.unseen_classes,
    data.shifted_boxes,
    data.missing_objects,
    data.different_sizes,
    schedule.too_few_steps,
    schedule.warmup_too_long,
    schedule.overfitting,
    schedule.still_improving,
    predictions.no_object_collapse,
    schedule.random_backbone,
)
SYMPTOMS: tuple[Rule, ...] = (
    predictions.duplicates,
    predictions.blind_queries,
    predictions.unrelated_boxes,
    predictions.confused_classes,
    predictions.loose_boxes,
)
SUFFICIENT = 0.9
"""If a cause explains this fraction of the missing AP, the model cannot have learned, and symptoms are not reported."""
NEGLIGIBLE = 0.05
"""Findings that explain less of the missing AP are not reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Likely causes of a run's low AP."""

    run: str
    """The folder of the run."""
    AP: float | None
    """AP of the last evaluation; None if there was none."""
    AP50: float | None
    """AP50 of the last evaluation; None if there was none."""
    epochs: int
    """Number of epochs, including the current one."""
    steps: int
    """Number of updates."""
    ended: str | None
    """Why the run ended; None if it is running, was killed, or did not record it."""
    findings: tuple[Finding, ...]
    """Findings, the most likely cause first; empty if the record shows no problem."""
    missing: tuple[str, ...]
    """What the record lacks, and what could therefore not be examined."""

    def summary(self) -> str:
        """Return the run, its AP, its length and why it ended, in one line."""
        shown = {"AP": self.AP, "AP50": self.AP50}
        scores = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
        length = f"{counted(self.steps, 'step')}, {counted(self.epochs, 'epoch')}"
        end = f"ended: {self.ended}" if self.ended else "its end is not recorded"
        return f"{self.run}: {', '.join(scores) or 'no AP'} after {length} ({end})"

    def notes(self) -> list[str]:
        """Return in sentences whether there is no finding, and what could not be examined."""
        none = [] if self.findings else ["No problem found in the record of the run."]
        return none + [f"Not examined: {note}." for note in self.missing]

    def rows(self) -> list[list[str]]:
        """Return a table row for each finding, with the columns `HEADS`."""
        return [finding.row() for finding in self.findings]

    def _repr_html_(self) -> str:
        """Show the findings in Jupyter."""
        return render("notebook/diagnosis.html", diagnosis=self, heads=HEADS)


def diagnose(run: str | Path) -> Diagnosis:
    """Find likely causes of a run's low AP in its record, without training or evaluating.

    Args:
        run: The folder of a finished or running training run.

    Raises:
        ConfigError: The folder is not that of a run.
        DataError: The record or the metrics are corrupt.
    """
    facts = Run.read(require_path("diagnose", run, "the folder of a run"))
    history = facts.history
    return Diagnosis(
        run=str(run),
        AP=latest(facts.finite("AP")),
        AP50=latest(facts.finite("AP50")),
        epochs=int(history["epoch"][-1]) if history else 0,
        steps=facts.steps,
        ended=facts.record.ended,
        findings=tuple(examine(facts)),
        missing=tuple(missing_facts(facts)),
    )


def examine(run: Run) -> list[Finding]:
    """Return the findings of all rules, the most likely cause first."""
    findings = apply(CAUSES, run)
    if not any(finding.explains >= SUFFICIENT for finding in findings):
        findings += apply(SYMPTOMS, run)
    return sorted(findings, key=lambda finding: -finding.explains)


def apply(rules: Iterable[Rule], run: Run) -> list[Finding]:
    """Return the findings of some rules, in their order."""
    findings = (rule(run) for rule in rules)
    return [finding for finding in findings if finding and finding.explains >= NEGLIGIBLE]


def latest(values: Sequence[float]) -> float | None:
    """Return the last value; None if there is none."""
    return values[-1] if values else None


def missing_facts(run: Run) -> Iterator[str]:
    """Yield in words what the record lacks, and what was therefore not examined."""
    record = run.record
    if not run.history:
        yield "metrics.csv has no row: no epoch was completed"
    if record.parts is None:
        yield (
            f"there is no {RECORD}, because the run is of an older version: sizes and numbers of objects, learning "
            "rates relative to the weights, and predictions were not examined"
        )
    elif record.validation is None:
        yield "there is no validation data (data.val): only the losses are known"
    elif record.evaluation is None:
        yield "the run has not been evaluated yet: predictions were not examined"
