"""Compare querybox with transformers, pycocotools, and facebookresearch/detr from a checkout.

Each row runs its sides interleaved in one process, on the same weights and inputs, after checking that their outputs
agree. Results are merged with those of earlier runs, so rows can be measured one at a time.
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
    masks,
    memory,
    plots,
    realtime,
    report,
    startup,
    training,
    training_dfine,
    training_small,
)
from benchmarks.measure import Row, RowResult, measure
from benchmarks.setup import Setup

FAMILIES = (
    inference,
    realtime,
    accuracy,
    training,
    training_small,
    training_dfine,
    masks,
    criterion,
    memory,
    data,
    evaluator,
    startup,
)
RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected rows and write the report of all rows; return 1 if no row matches."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    folder = options.output or (RESULTS.with_name("quick") if options.quick else RESULTS)
    setup = Setup(
        facebook=options.facebook,
        ultralytics=options.ultralytics,
        quick=options.quick,
        folder=folder / "models",
    )
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
    """Return the command-line parser."""
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    result.add_argument(
        "rows", nargs="*", metavar="ROW", help="names, or patterns such as 'inference*'; all by default"
    )
    result.add_argument("--facebook", type=Path, metavar="PATH", help="a checkout of facebookresearch/detr")
    result.add_argument(
        "--ultralytics",
        type=Path,
        metavar="PATH",
        help="a Python interpreter that has ultralytics, for YOLO26",
    )
    result.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results are saved; benchmarks/results"
    )
    result.add_argument(
        "--quick", action="store_true", help="small inputs and few samples, to check that all rows work"
    )
    result.add_argument("--list", action="store_true", help="list the rows without measuring")
    return result


def all_rows(setup: Setup) -> Iterator[Row]:
    """Yield the rows of every family."""
    for family in FAMILIES:
        yield from family.rows(setup)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a row is selected; without patterns all rows are."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def save(folder: Path, results: Sequence[RowResult]) -> None:
    """Write the results, the tables and the pictures."""
    report.write(folder / "results.json", results)
    (folder / "results.md").write_text(report.markdown(results), encoding="utf-8")
    plots.draw_rows(results, folder / "rows.png")
    plots.draw_growth(results, folder / "growth.png")


if __name__ == "__main__":
    sys.exit(main())
