"""Measures querybox beside transformers on a GPU: same card, same weights, same inputs, in turns in one process.

First come the tests marked `device`. A row that fails says so and the others go on; rows that no time is left for are
named. Results are written after every row. It needs nothing but this checkout and its dependencies, no network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks import environment, report
from benchmarks.__main__ import matches
from benchmarks.gpu import inference, pipeline, training
from benchmarks.gpu.models import Run
from benchmarks.measure import Row, RowResult, SideResult, measure

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
TESTS = "tests"
"""The name by which the tests are asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests and measure the rows that are asked for; return 1 if a test failed or nothing has such a name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    deadline = time.monotonic() + 60 * options.minutes
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or the training loop would find the GPU by itself
    run = Run(device=torch.device(options.device), quick=options.quick)
    folder = options.output or (RESULTS.with_name("gpu-quick") if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [row for row in all_rows(run) if matches(row.name, options.rows)]
    testing = matches(TESTS, options.rows)
    if not wanted and not testing:
        print("\n".join([TESTS, *(row.name for row in all_rows(run))]))
        return 1
    failed = testing and not run_tests(folder / "tests.txt")
    results: list[RowResult] = []
    facts = environment.describe(environment.command(words, "python -m benchmarks.gpu"))
    for row in wanted:
        start = time.monotonic()
        with torch.compiler.set_stance("force_eager" if run.quick else "default"):
            result = measure(row) if start < deadline else without_time(row)
        result.environment = facts
        results.append(result)
        report.write(folder / "results.json", results)
        print(f"[{time.monotonic() - start:.0f} s] {line(result)}", flush=True)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
    (folder / "results.md").write_text(report.markdown(results), encoding="utf-8")
    print(f"Report: {folder / 'results.md'}")
    return int(failed)


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    result.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"names, or patterns such as 'training*', or '{TESTS}'; all by default",
    )
    result.add_argument("--device", default="cuda", help="where to measure: cuda by default, or cpu")
    result.add_argument(
        "--quick",
        action="store_true",
        help="tiny models, few samples, nothing compiled: to see that all rows work",
    )
    result.add_argument(
        "--minutes", type=float, default=6.0, help="after these no row is begun; 6 by default"
    )
    result.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results are kept; benchmarks/results/gpu"
    )
    return result


def all_rows(run: Run) -> Iterator[Row]:
    """Yield all rows, those that take long last."""
    yield from pipeline.rows(run)
    yield from training.rows(run)
    yield from inference.rows(run)


def run_tests(path: Path) -> bool:
    """Run the tests marked `device`, keep what they print, and return whether they passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "device", "tests/training", "tests/fast"]
    with path.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)
    print(path.read_text(encoding="utf-8"), flush=True)
    return done.returncode == 0


def without_time(row: Row) -> RowResult:
    """Return the result of a row for which no time is left."""
    sides = [SideResult(name=side.name, status="absent", note="no time was left") for side in row.sides]
    return RowResult(name=row.name, title=row.title, unit=row.unit, sides=sides)


def line(result: RowResult) -> str:
    """Return a result in a line: the median of every side, or why there is none."""
    sides = [
        f"{side.name} {report.number(median(side.samples)) if side.samples else f'{side.status} ({side.note[:100]})'}"
        for side in result.sides
    ]
    return f"{result.name} ({result.unit}): {'; '.join(sides)}"


if __name__ == "__main__":
    sys.exit(main())
