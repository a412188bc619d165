"""``querybox diagnose``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.cli.streams import print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from querybox.diagnosis import Diagnosis, Finding


def diagnose(run: Path, /, *, json: bool = False) -> None:
    """Find likely causes of a run's low AP, with evidence and the settings to change.

    Only the record of the run is read, so this is fast and also works during training. The most likely cause comes
    first. The report of the run contains the same diagnosis.

    ```
    querybox diagnose runs/mine
    querybox diagnose runs/mine --json | jq '.findings[0].cure'
    ```

    Args:
        run: The folder of a training run.
        json: Print JSON instead of text.
    """
    from querybox.diagnosis import diagnose as find_causes
    from querybox.terminal import Console

    diagnosis = find_causes(run)
    if json:
        print_json(dataclasses.asdict(diagnosis), indent=2)
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for line in describe(diagnosis):
        console.print(line)


def describe(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the lines of a diagnosis."""
    yield diagnosis.summary()
    for index, finding in enumerate(diagnosis.findings, 1):
        yield from describe_finding(index, finding)
    for note in diagnosis.notes():
        yield f"\n{note}"


def describe_finding(index: int, finding: Finding) -> Iterator[str]:
    """Yield the lines of a finding: cause, evidence, cure."""
    from querybox.diagnosis.finding import number

    yield f"\n{index}. {finding.cause} [{finding.area}]"
    width = max(map(len, finding.evidence), default=0)
    for name, value in finding.evidence.items():
        yield f"     {name:<{width}}  {number(value)}"
    yield f"   Cure: {finding.cure}"
