"""Train querybox's and transformers' detectors on the same few images, and report their accuracy over time.

A model that was already trained with the same settings is not trained again, so the comparison can be made in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, report
from benchmarks.convergence import pages
from benchmarks.convergence.curves import Curve, Point, Watch, read, write
from benchmarks.convergence.one_class import one_class
from benchmarks.convergence.ours import OURS, settings, train_ours
from benchmarks.convergence.theirs import THEIRS, train_theirs
from querybox.data import read_dataset
from querybox.training import RunSettings
from querybox.training.start import resolve

PROGRAM = "python -m benchmarks.convergence"
ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "convergence"
DOCS = ROOT / "docs"
TITLES = {**OURS, **{name: peer.title for name, peer in THEIRS.items()}}
MAIN = "blood_cells"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the selected models that have not been trained yet, and write the report of all."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(words)
    if options.threads:
        torch.set_num_threads(options.threads)
    data = None
    folder = options.output / MAIN
    if options.coco:
        folder = options.output / options.category
        data = one_class(options.coco, options.category, folder / "data")
    for name in options.models:
        run = settings(name, options.minutes, data)
        decisive = decisive_settings(name, run)
        previous = None if options.fresh else read(folder / f"{name}.json")
        if previous is not None and previous.settings == decisive:
            print(f"{name}: already trained with these settings; skipped", flush=True)
            continue
        facts = environment.describe(environment.command(words, PROGRAM))
        points = train(name, run, folder / name, options.minutes)
        curve = Curve(name=name, title=TITLES[name], settings=decisive, points=points, environment=facts)
        write(folder / f"{name}.json", curve)
    conclude(options.output, docs=options.docs)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    result = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    result.add_argument(
        "--models",
        nargs="*",
        choices=TITLES,
        default=list(TITLES),
        help="default: all; none: only write the report",
    )
    result.add_argument(
        "--minutes", type=float, default=10.0, help="training time of each model; default: 10"
    )
    result.add_argument(
        "--threads", type=int, metavar="N", help="number of PyTorch threads; default: PyTorch's own"
    )
    result.add_argument("--fresh", action="store_true", help="train all models again")
    result.add_argument(
        "--coco", type=Path, metavar="FOLDER", help="train on one class of a COCO folder instead"
    )
    result.add_argument("--category", default="person", help="the class; default: person")
    result.add_argument("--docs", action="store_true", help="write docs/convergence.md and its picture, too")
    result.add_argument(
        "--output", type=Path, default=RESULTS, metavar="FOLDER", help="where results are saved"
    )
    return result


def decisive_settings(name: str, run: RunSettings) -> dict[str, Any]:
    """Return all settings that affect a curve as plain values, without the paths of this machine."""
    run = resolve(run) if name in OURS else run  # include the recipe's settings
    values = run.model_dump(mode="json", exclude={"output"})
    values["data"]["train"] = Path(values["data"]["train"]).name
    peer = dataclasses.asdict(THEIRS[name]) if name in THEIRS else {}
    plain: dict[str, Any] = json.loads(json.dumps({**values, **peer, "threads": torch.get_num_threads()}))
    return plain


def train(name: str, run: RunSettings, folder: Path, minutes: float) -> list[Point]:
    """Train a model and return its points."""
    assert run.data.train is not None
    training, validation = (read_dataset(run.data.train, split) for split in ("train", "val"))
    watch = Watch(name, minutes, validation, max(1, len(training.images) // run.train.batch_size))
    if name in THEIRS:
        train_theirs(THEIRS[name], run, training, watch)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        train_ours(run, training, watch, folder)
    return watch.points


def conclude(folder: Path, *, docs: bool) -> None:
    """Write the report of all models trained so far; with `docs`, as the page of the documentation."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = {each.name: curves_in(each) for each in sorted(folder.iterdir()) if each.is_dir()}
    curves = folders.pop(MAIN, [])
    others = {data: measured for data, measured in folders.items() if measured}
    rows = report.read(folder.parent / "results.json")
    steps = [row for row in rows if row.name.startswith("training-small")]
    page, picture = folder / "convergence.md", folder / "convergence.png"
    if docs:
        page, picture = DOCS / page.name, DOCS / "images" / picture.name
    page.write_text(
        pages.page(curves, others, steps, picture.relative_to(page.parent).as_posix()), encoding="utf-8"
    )
    if curves:
        pages.draw(curves, picture)
    print(f"Report: {page}")


def curves_in(folder: Path) -> list[Curve]:
    """Return the curves in a folder, in the order of the models."""
    known = (read(folder / f"{name}.json") for name in TITLES)
    return [curve for curve in known if curve is not None]


if __name__ == "__main__":
    sys.exit(main())
