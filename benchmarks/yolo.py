"""YOLO26 by ultralytics, in a process of an interpreter of its own, because querybox does not depend on ultralytics."""

from __future__ import annotations

import subprocess
import weakref
from functools import partial
from pathlib import Path

import torch

from benchmarks.measure import Absent, Side, Work
from benchmarks.setup import Setup

ENGINES = ("torch", "OpenVINO", "OpenVINO int8")
SERVER = Path(__file__).with_name("yolo_server.py")


def sides(setup: Setup, model: str, size: int) -> list[Side]:
    """Return a side for each engine that runs a model with random weights on one square image.

    Args:
        setup: Options of the run.
        model: Name of the model, such as ``"yolo26n"``.
        size: Height and width of the image in pixels.
    """
    return [
        Side(name=f"{model}, {engine}", build=partial(start, setup, model, engine, size), compared=False)
        for engine in ENGINES
    ]


def start(setup: Setup, model: str, engine: str, size: int) -> Work:
    """Start the process; return a function that lets it run the model once.

    Raises:
        Absent: No interpreter is given, or it cannot run the model.
    """
    if setup.ultralytics is None:
        raise Absent("needs an interpreter that has ultralytics: --ultralytics PATH")
    process = subprocess.Popen(
        [setup.ultralytics, SERVER, model, engine, str(size), str(torch.get_num_threads())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    wait(process)  # until the model is built

    def work() -> None:
        assert process.stdin is not None
        process.stdin.write("again\n")
        wait(process)

    weakref.finalize(work, process.communicate)  # ends the process
    return work


def wait(process: subprocess.Popen[str]) -> None:
    """Wait for the next answer of the process; other lines are messages of ultralytics."""
    assert process.stdout is not None
    for line in process.stdout:
        if line == "done\n":
            return
    process.communicate()
    raise Absent(f"the process of ultralytics ended with the exit code {process.returncode}")
