"""Peak memory. Each side runs in its own process, which runs this module with the names of a row and a side."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import inference, masks, peers, training
from benchmarks.engines import ONNX, OPENVINO, OPTIMISED
from benchmarks.goals import smaller
from benchmarks.measure import Absent, Row, Work
from benchmarks.setup import Setup, detector
from querybox.memory import process_memory, reports_memory, reset_peak

CPU = torch.device("cpu")
WORKS = 3
"""Number of repetitions of the work before the peak is read."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for inference, and rows for training steps, also of masks."""
    for name, row in timed_rows(setup).items():
        yield Row(
            name=name,
            title=f"Peak memory beyond the imports: {row.title[0].lower()}{row.title[1:]}",
            sides=[
                replace(side, build=partial(in_new_process, setup, name, side.name)) for side in row.sides
            ],
            difference=None if row.difference is None else difference,
            value=lambda answer: float(answer["mebibytes"]),
            goals=row.goals,
            unit="MiB",
            rounds=(0, 0),
        )


def timed_rows(setup: Setup) -> dict[str, Row]:
    """Return the timed rows whose memory is measured here."""
    step = training.row(setup)
    forward = inference.float32(setup, 1, (800, 1066))
    wanted = (OPTIMISED, ONNX, OPENVINO, peers.FACEBOOK, peers.TRANSFORMERS)
    goals = [smaller([training.FULL, training.BEST], peers.FACEBOOK, 0.7)]
    return {
        "memory-inference": replace(
            forward, sides=[side for side in forward.sides if side.name in wanted], goals=[]
        ),
        "memory-training": replace(step, goals=goals),
        **{
            f"memory-{row.name}": replace(row, goals=[smaller([masks.MASKS], masks.BOXES, 1.3)])
            for row in masks.training_rows(setup)
        },
    }


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference between values of two results, relative if they are above 1."""
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in zip(a["answer"], b["answer"], strict=True))


def in_new_process(setup: Setup, row: str, side: str) -> Work:
    """Return a function that measures a side in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", row, side, str(setup.folder)]
    command += [f"--facebook={setup.facebook}"] if setup.facebook else []
    command += ["--quick"] if setup.quick else []

    def work() -> dict[str, Any]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Absent(done.stderr.strip().rpartition("\n")[2])
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return work


def main(arguments: Sequence[str]) -> None:
    """Print the result of a side and its peak memory relative to before it was built.

    Memory used only temporarily while building is not counted. Memory that stays allocated is: for the default
    engine this includes the detector that it is a copy of.

    Raises:
        Absent: The system does not report the peak, as only Linux does.
    """
    if not reports_memory(CPU):
        raise Absent("the peak of a part of a process can be read on Linux only")
    row, name, folder, *options = arguments
    paths = [Path(option.partition("=")[2]) for option in options if option.startswith("--facebook")]
    setup = Setup(facebook=paths[0] if paths else None, quick="--quick" in options, folder=Path(folder))
    (side,) = (side for side in timed_rows(setup)[row].sides if side.name == name)
    import_all(setup)
    gc.collect()
    before = process_memory("VmRSS")
    with side.within():
        work = side.build()
        if name != OPTIMISED:
            detector.cache_clear()
        reset_peak(CPU)
        answers = [plain(work()) for _ in range(WORKS)]
    print(json.dumps({"answer": answers[0], "mebibytes": (process_memory("VmHWM") - before) / 2**20}))


def import_all(setup: Setup) -> None:
    """Import what any side needs, so that imports are not counted for any of them."""
    for module in ("transformers.models.detr.modeling_detr", "onnxruntime", "openvino", "accelerate"):
        with suppress(ImportError):
            importlib.import_module(module)
    with suppress(Absent), peers.importable(setup.facebook):
        importlib.import_module("main")


def plain(answer: Sequence[Any]) -> list[float]:
    """Return a result as a list of numbers: the first 200 of each tensor."""
    parts = [part.flatten()[:200].tolist() if isinstance(part, torch.Tensor) else [part] for part in answer]
    return [float(value) for part in parts for value in part]


if __name__ == "__main__":
    main(sys.argv[1:])
