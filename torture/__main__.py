"""Makes every fault and prints what happened as a table, which is also written to `torture/results.md`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.case import Case

PARTS: dict[str, Sequence[Case]] = {}
"""By the name of the part; each module of this package has one."""
RESULTS = Path(__file__).parent / "results.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case."""

    part: str
    case: Case
    survived: bool
    happened: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for; return how many were not survived."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=list(PARTS), help="parts to run; all by default")
    parser.add_argument("--short", action="store_true", help="few repetitions, as in CI")
    options = parser.parse_args(arguments)
    outcomes = []
    for part in options.parts or PARTS:
        for case in PARTS[part]:
            outcome = outcome_of(part, case, long=not options.short)
            outcomes.append(outcome)
            print(line(outcome), flush=True)
    if not options.parts and not options.short:
        RESULTS.write_text(table(outcomes), encoding="utf-8")
    failed = sum(not outcome.survived for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} survived")
    return failed


def outcome_of(part: str, case: Case, *, long: bool) -> Outcome:
    """Run a case in a folder of its own."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            survived, happened = True, case.run(Path(folder), long)
        except Exception as error:  # noqa: BLE001 - whatever escapes is what this looks for
            survived, happened = False, f"{type(error).__name__}: {error}"
    return Outcome(
        part=part, case=case, survived=survived, happened=happened, seconds=time.perf_counter() - start
    )


def line(outcome: Outcome) -> str:
    """Say an outcome in one line."""
    mark = "survived" if outcome.survived else "FAILED"
    return f"{mark:8} {outcome.part}: {outcome.case.name}: {outcome.happened} ({outcome.seconds:.1f} s)"


def table(outcomes: Sequence[Outcome]) -> str:
    """Return all outcomes as a Markdown table."""
    rows = [
        f"| {each.part} | {each.case.name} | {each.case.required} | {each.happened} | "
        f"{'yes' if each.survived else '**no**'} | {each.seconds:.1f} |"
        for each in outcomes
    ]
    head = ["| part | fault | required | what happened | survived | s |", "|---|---|---|---|---|---:|"]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
