"""Results as JSON, which later runs update, and as Markdown tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.goals import ratio, spread
from benchmarks.measure import RowResult, SideResult

RESULTS = TypeAdapter(list[RowResult])


def read(path: Path) -> list[RowResult]:
    """Return the results of earlier runs, or an empty list if the file does not exist."""
    return RESULTS.validate_json(path.read_bytes()) if path.exists() else []


def write(path: Path, results: Sequence[RowResult]) -> None:
    """Write results with all samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps([dataclasses.asdict(result) for result in results], indent=1) + "\n", encoding="utf-8"
    )


def merge(old: Sequence[RowResult], new: Sequence[RowResult], order: Sequence[str]) -> list[RowResult]:
    """Replace old results of a row by new ones, in the given order of names."""
    latest = {result.name: result for result in (*old, *new)}
    return [latest[name] for name in order if name in latest]


def markdown(results: Sequence[RowResult]) -> str:
    """Return all results as one page."""
    points = [result for result in results if result.x is not None]
    rows = [result for result in results if result.x is None]
    parts = ["# Benchmarks", environment(each.environment for each in results), goals_table(results)]
    for result in rows:
        parts += [f"## {result.title}", row_table(result)]
    for title, curve in groupby(points, key=lambda result: result.title):
        parts += [f"## {title}", growth_table(list(curve))]
    return "\n\n".join(part for part in parts if part) + "\n"


def environment(measured: Iterable[Mapping[str, Any]]) -> str:
    """Describe where, when and how something was measured, without repetitions."""
    lines = []
    for facts in measured:
        packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
        lines.append(
            f"{facts['processor']}, {facts['cpus']} cores, {facts['threads']} threads, {facts['memory']}; "
            f"{facts['platform']}; Python {facts['python']}, {packages}; commit {facts['commit']}; "
            f"{facts['date'][:10]}, `{facts['command']}`"
        )
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def goals_table(results: Sequence[RowResult]) -> str:
    """Return a table with one line per goal."""
    lines = [
        f"| {result.title} | {goal.text} | {'-' if goal.value is None else f'{goal.value:.2f}'} "
        f"| {goal.side or 'not measured'} | {'yes' if goal.reached else '**no**'} |"
        for result in results
        for goal in result.goals
    ]
    return (
        "\n".join(["| | goal | measured | by | reached |", "|---|---|---|---|---|", *lines]) if lines else ""
    )


def peers(sides: Sequence[SideResult]) -> list[SideResult]:
    """Return the measured sides of other implementations."""
    return [side for side in sides if side.samples and not side.name.startswith("querybox")]


def row_table(result: RowResult) -> str:
    """Return a table with one line per side: median, quartiles, and the ratio of each peer to it."""
    others = peers(result.sides)
    headings = [
        "",
        f"median {result.unit}",
        "quartiles",
        "least",
        "samples",
        "difference",
        *(f"{each.name} takes" for each in others),
    ]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
    for side in result.sides:
        if not side.samples:
            lines.append([side.name, f"{side.status}: {side.note}", *[""] * (len(headings) - 2)])
            continue
        low, middle, high = spread(side.samples)
        off = "" if side.difference is None else f"{side.difference:.1g}"
        lines.append(
            [
                side.name,
                number(middle),
                f"{number(low)} - {number(high)}",
                number(min(side.samples)),
                str(len(side.samples)),
                off,
            ]
            + [f"{ratio(side.samples, other.samples):.2f}x" for other in others]
        )
    return table(lines)


def growth_table(results: Sequence[RowResult]) -> str:
    """Return a table with one line per task size and one column per side."""
    names = [side.name for side in results[0].sides]
    lines = [["size", *names], ["---:"] * (len(names) + 1)]
    for result in results:
        medians = [number(spread(side.samples)[1]) if side.samples else side.status for side in result.sides]
        lines.append([f"{result.x:,.0f}", *medians])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the second line has the alignment of the columns."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Format with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
