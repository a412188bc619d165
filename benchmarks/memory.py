"""Peak memory: every side in a process of its own, which is this module run with the names of a row and a side."""

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

from benchmarks import inference, peers, training
from benchmarks.engines import ONNX, OPENVINO, OPTIMISED
from benchmarks.goals import smaller
from benchmarks.measure import Absent, Row, Work
from benchmarks.setup import Setup, detector

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
WORKS = 3
"""How often the work is done before the peak is read."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row of an inference and one of a training step."""
    for name, row in timed_rows(setup).items():
        yield Row(
            name=name,
            title=f"Peak memory beyond the imports: {row.title[0].lower()}{row.title[1:]}",
            sides=[replace(side, build=partial(elsewhere, setup, name, side.name)) for side in row.sides],
            difference=difference,
            value=lambda answer: float(answer["mebibytes"]),
            goals=row.goals,
            unit="MiB",
            rounds=(0, 0),
        )


def timed_rows(setup: Setup) -> dict[str, Row]:
    """Return the rows that are measured here for their memory."""
    step = training.row(setup)
    forward = inference.float32(setup, 1, (800, 1066))
    wanted = (OPTIMISED, ONNX, OPENVINO, peers.FACEBOOK, peers.TRANSFORMERS)
    goals = [smaller([training.FULL, training.BEST], peers.FACEBOOK, 0.7)]
    return {
        "memory-inference": replace(
            forward, sides=[side for side in forward.sides if side.name in wanted], goals=[]
        ),
        "memory-training": replace(step, goals=goals),
    }


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference of any two numbers of the answers, relative where they are above 1."""
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in zip(a["answer"], b["answer"], strict=True))


def elsewhere(setup: Setup, row: str, side: str) -> Work:
    """Return what measures a side in a new process."""
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
    """Print what a side answers, and how much memory it had at most beyond that before it was built.

    Building may take more for a moment: that is not counted for any side. What stays is counted: for our default
    engine also the detector that it is the optimised copy of.
    """
    row, name, folder, *options = arguments
    paths = [Path(option.partition("=")[2]) for option in options if option.startswith("--facebook")]
    setup = Setup(facebook=paths[0] if paths else None, quick="--quick" in options, folder=Path(folder))
    (side,) = (side for side in timed_rows(setup)[row].sides if side.name == name)
    import_all(setup)
    gc.collect()
    before = memory("VmRSS")
    with side.within():
        work = side.build()
        if name != OPTIMISED:
            detector.cache_clear()
        gc.collect()
        RESET.write_text("5")  # the peak begins anew
        answers = [plain(work()) for _ in range(WORKS)]
    print(json.dumps({"answer": answers[0], "mebibytes": memory("VmHWM") - before}))


def import_all(setup: Setup) -> None:
    """Import what any side needs, so that no side pays for it."""
    for module in ("transformers.models.detr.modeling_detr", "onnxruntime", "openvino", "accelerate"):
        with suppress(ImportError):
            importlib.import_module(module)
    with suppress(Absent), peers.importable(setup.facebook):
        importlib.import_module("main")


def memory(field: str) -> float:
    """Return a field of this process's status in MiB: VmRSS, or VmHWM, which is its peak.

    Raises:
        Absent: This is not Linux.
    """
    if not STATUS.exists():
        raise Absent("the peak of a part of a process can be read on Linux only")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def plain(answer: Sequence[Any]) -> list[float]:
    """Return an answer as numbers: some of them, of tensors."""
    parts = [part.flatten()[:200].tolist() if isinstance(part, torch.Tensor) else [part] for part in answer]
    return [float(value) for part in parts for value in part]


if __name__ == "__main__":
    main(sys.argv[1:])
