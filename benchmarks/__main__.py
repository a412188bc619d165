"""Measures querybox beside its peers: transformers, pycocotools, and facebookresearch/detr from a checkout.

Every row runs its sides in turns in one process, on the same weights and inputs, after checking that they give the
same answer. Results are added to those of earlier runs: a row may be measured at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks import (
    accuracy,
    criterion,
    data,
    environment,
    evaluator,
    inference,
    memory,
    plots,
    report,
    startup,
    training,
    training_small,
)
from benchmarks.measure import Row, RowResult, measure
from benchmarks.setup import Setup

FAMILIES = (inference, accuracy, training, training_small, criterion, memory, data, evaluator, startup)
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows that are asked for and write the report of all; return 1 if no row has such a name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    folder = options.output or (RESULTS.with_name("quick") if options.quick else RESULTS)
    setup = Setup(facebook=options.facebook, quick=options.quick, folder=folder / "models")
    every = list(all_rows(setup))
    wanted = [row for row in every if matches(row.name, options.rows)]
    if options.list or not wanted:
        print("\n".join(f"{row.name:40} {row.title}" for row in (wanted or every)))
        return int(not wanted)
    setup.folder.mkdir(parents=True, exist_ok=True)
    order = [row.name for row in every]
    for row in wanted:
        print(f"{row.name}: {row.title}", flush=True)
        result = measure(row)
        result.environment = environment.describe(environment.command(words))
        print(report.goals_table([result]), report.row_table(result), sep="\n", flush=True)
        save(folder, report.merge(report.read(folder / "results.json"), [result], order))
    print(f"Report: {folder / 'results.md'}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    result.add_argument(
        "rows", nargs="*", metavar="ROW", help="names, or patterns such as 'inference*'; all by default"
    )
    result.add_argument("--facebook", type=Path, metavar="PATH", help="a checkout of facebookresearch/detr")
    result.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results are kept; benchmarks/results"
    )
    result.add_argument(
        "--quick", action="store_true", help="small inputs, few samples: to see that all rows work"
    )
    result.add_argument("--list", action="store_true", help="name the rows, measure nothing")
    return result


def all_rows(setup: Setup) -> Iterator[Row]:
    """Yield the rows of every family."""
    for family in FAMILIES:
        yield from family.rows(setup)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a row is asked for; all are where nothing is."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def save(folder: Path, results: Sequence[RowResult]) -> None:
    """Write the results, the tables and the pictures."""
    report.write(folder / "results.json", results)
    (folder / "results.md").write_text(report.markdown(results))
    plots.draw_rows(results, folder / "rows.png")
    plots.draw_growth(results, folder / "growth.png")


if __name__ == "__main__":
    sys.exit(main())
