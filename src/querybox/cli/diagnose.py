"""``querybox diagnose``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from querybox.diagnosis import Diagnosis, Finding


def diagnose(
    run: Path, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False
) -> None:
    """Say why a run's AP is low: what is at fault, by which numbers, and what to set.

    Reads nothing but the run's own record, so it takes no time, also while the run goes on. The likeliest cause comes
    first. The same stands in the run's report.

    ```
    querybox diagnose runs/mine
    querybox diagnose runs/mine --json | jq '.findings[0].cure'
    ```

    Args:
        run: The folder of a training run.
        as_json: Print JSON instead of text.
    """
    from rich.console import Console

    from querybox.diagnosis import diagnose as examine

    diagnosis = examine(run)
    if as_json:
        print(json.dumps(dataclasses.asdict(diagnosis), indent=2, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in describe(diagnosis):
        console.print(line)


def describe(diagnosis: Diagnosis) -> Iterator[str]:
    """Tell a diagnosis in lines of text."""
    shown = {"AP": diagnosis.AP, "AP50": diagnosis.AP50}
    scores = [f"{name} {value:.3f}" for name, value in shown.items() if value is not None]
    yield (
        f"{diagnosis.run}: {', '.join(scores) or 'no AP'} after {diagnosis.steps:,} steps, {diagnosis.epochs:,} epochs"
        f" ({f'ended: {diagnosis.ended}' if diagnosis.ended else 'its end is not recorded'})"
    )
    if not diagnosis.findings:
        yield "\nNo problem found in the record of the run."
    for place, finding in enumerate(diagnosis.findings, 1):
        yield from describe_finding(place, finding)
    for note in diagnosis.missing:
        yield f"\nNot examined: {note}."


def describe_finding(place: int, finding: Finding) -> Iterator[str]:
    """Tell a finding: cause, evidence, cure."""
    from querybox.diagnosis.finding import number

    yield f"\n{place}. {finding.cause} [{finding.area}]"
    width = max(map(len, finding.evidence), default=0)
    for name, value in finding.evidence.items():
        yield f"     {name:<{width}}  {number(value)}"
    yield f"   Cure: {finding.cure}"
