"""Throughput of `querybox predict --ray local` and of the plain command, on the same cores.

``python -m benchmarks.scale`` prints a table; see ``docs/guides/scale.md``. Both commands predict two numbers of photos
of blood cells, in turn, so that other programs on the machine slow down both; the differences of their times are the
time of an image, without that of the start.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from benchmarks.setup import EXAMPLE

COMMANDS = {"plain": ["--format", "csv"], "ray": ["--ray", "local"]}
"""Options of the two commands; neither draws."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EXAMPLE / "weights.safetensors")
    parser.add_argument("--images", type=int, nargs=2, default=(40, 240), metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    few, many = options.images
    seconds: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            copy_photos(Path(folder) / str(count), count)
        for _ in range(options.rounds):
            for count in (few, many):
                for name, words in COMMANDS.items():
                    workers = ["--workers", str(options.workers)] if name == "ray" else []
                    duration = timed(options.model, Path(folder), count, [*words, *workers])
                    seconds.setdefault((name, count), []).append(duration)
                    print(f"{name}, {count} images: {duration:.1f} s", flush=True)
    print(
        f"\n| command | {few} images | {many} images | images/s after the start | start |\n|---|---|---|---|---|"
    )
    rates = {}
    for name in COMMANDS:
        short, long = (statistics.median(seconds[name, count]) for count in (few, many))
        rates[name] = (many - few) / (long - short)
        print(
            f"| {name} | {short:.1f} s | {long:.1f} s | {rates[name]:.2f} | {short - few / rates[name]:.1f} s |"
        )
    print(f"\nray / plain: {rates['ray'] / rates['plain']:.2f}")


def copy_photos(folder: Path, count: int) -> None:
    """Copy photos to a folder, again from the first if there are fewer."""
    folder.mkdir()
    for number, photo in enumerate(islice(cycle(sorted((EXAMPLE / "images").glob("*.jpg"))), count)):
        shutil.copy(photo, folder / f"{number}.jpg")


def timed(model: Path, folder: Path, count: int, words: Sequence[str]) -> float:
    """Return the seconds that a command takes."""
    output = folder / "found"
    command = [sys.executable, "-m", "querybox", "predict", str(model), str(folder / str(count))]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    start = time.perf_counter()
    subprocess.run(
        [*command, "--output", str(output), *words], env=environment, check=True, capture_output=True
    )
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return seconds


if __name__ == "__main__":
    main()
