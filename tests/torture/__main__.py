"""Makes every fault and prints what happened as a table.

The long form writes the table of each part that was run to `docs/torture.md`.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from torture import (
    batches,
    crashes,
    data,
    disk,
    folders,
    fuzz,
    hostile,
    masks,
    panoptic,
    predictions,
    processes,
    serving,
    settings,
    shards,
    streams,
    values,
    videos,
)
from torture.case import Case

PARTS: dict[str, Sequence[Case]] = {
    "data": data.CASES,
    "masks": masks.CASES,
    "panoptic": panoptic.CASES,
    "fuzz": fuzz.CASES,
    "hostile": hostile.CASES,
    "batches": batches.CASES,
    "crashes": crashes.CASES,
    "folders": folders.CASES,
    "disk": disk.CASES,
    "processes": processes.CASES,
    "settings": settings.CASES,
    "serving": serving.CASES,
    "shards": shards.CASES,
    "values": values.CASES,
    "videos": videos.CASES,
    "streams": streams.CASES,
    "predictions": predictions.CASES,
}
"""By the name of the part; each module of this package has one."""
PAGE = Path(__file__).parents[2] / "docs" / "torture.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case."""

    part: str
    case: Case
    survived: bool
    happened: str
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases that are asked for; return 1 if one was not survived, else 0."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--short", action="store_true", help="few repetitions, as in CI; the page stays as it is"
    )
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}; expected some of {', '.join(PARTS)}")
    if hasattr(signal, "SIGHUP"):
        signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        )  # which nohup ignores, also in processes that are started here
    console = Console()
    outcomes = []
    for part in options.parts or PARTS:
        for case in PARTS[part]:
            console.print(Text(f"{part}: {case.name} ..."))
            outcomes.append(outcome_of(part, case, long=not options.short))
            console.print(Text(f"  {outcomes[-1].happened} ({outcomes[-1].seconds:.1f} s)"))
    console.print(table(outcomes))
    if not options.short:
        for part in dict.fromkeys(outcome.part for outcome in outcomes):
            mine = [outcome for outcome in outcomes if outcome.part == part]
            PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), part, mine), encoding="utf-8")
    failed = sum(not outcome.survived for outcome in outcomes)
    console.print(f"{len(outcomes) - failed} of {len(outcomes)} survived")
    return int(failed > 0)


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


def table(outcomes: Sequence[Outcome]) -> Table:
    """Return all outcomes as a table for the terminal."""
    shown = Table("", "part", "fault", "required", "what happened", show_lines=True)
    shown.add_column("s", justify="right")
    for each in outcomes:
        mark = Text("survived", "green") if each.survived else Text("FAILED", "bold red")
        texts = (each.part, each.case.name, each.case.required, each.happened, f"{each.seconds:.1f}")
        shown.add_row(mark, *map(Text, texts))
    return shown


def with_section(page: str, part: str, outcomes: Sequence[Outcome]) -> str:
    """Return the page with the section of a part replaced, or added at its end."""
    rows = [
        (
            each.case.name,
            each.case.required,
            each.happened,
            "yes" if each.survived else "**no**",
            f"{each.seconds:.1f}",
        )
        for each in outcomes
    ]
    head = "| fault | required | what happened | survived | s |\n|---|---|---|---|---:|\n"
    body = "".join(f"| {' | '.join(map(cell, row))} |\n" for row in rows)
    title = f"## {part.capitalize()}\n"
    before, found, after = page.partition(title)
    _, following, others = after.partition("\n## ")
    before = before if found else f"{page}\n"
    return f"{before}{title}\n{head}{body}{following}{others}"


def cell(text: str) -> str:
    """Return the text as it may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
