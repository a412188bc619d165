"""Startup times: imports, ``--help``, loading a model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import engines, peers
from benchmarks.goals import beyond, under
from benchmarks.measure import Absent, Row, Side, Work
from benchmarks.setup import Setup, detector

TORCH = "torch"
IMPORTS = {
    TORCH: "import torch",
    "querybox": "import torch, querybox",
    "querybox.Detector": "import torch, querybox; querybox.Detector",
    "querybox, every public name": "import torch, querybox; [getattr(querybox, name) for name in querybox.__all__]",
    peers.TRANSFORMERS: "import torch; from transformers import DetrForObjectDetection",
    peers.FACEBOOK: "import torch, main",
}
CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
HELP = "querybox --help"


def rows(setup: Setup) -> Iterator[Row]:
    """Yield imports and ``--help`` in fresh processes, and loading a model."""
    yield Row(
        name="import",
        title="Import, in a fresh process",
        sides=[Side(name=name, build=partial(importing, setup, name)) for name in IMPORTS],
        difference=None,
        value=float,
        goals=[beyond("querybox", TORCH, 0.5), beyond("querybox.Detector", TORCH, 0.5)],
        rounds=(0, 0) if setup.quick else (3, 3),
    )
    yield Row(
        name="help",
        title="`querybox --help`, the whole process",
        sides=[Side(name=HELP, build=help_command)],
        difference=None,
        goals=[under(HELP, 1.0)],
        rounds=(1, 1) if setup.quick else (7, 7),
    )
    loaders = {
        "querybox": partial(load_ours, setup),
        engines.ONNX: partial(load_exported, setup, engines.ONNX),
        engines.OPENVINO: partial(load_exported, setup, engines.OPENVINO),
        peers.FACEBOOK: partial(load_facebook, setup),
        peers.TRANSFORMERS: partial(load_transformers, setup),
    }
    yield Row(
        name="load",
        title="Load DETR R50 from a file, imports done",
        sides=[Side(name=name, build=build) for name, build in loaders.items()],
        difference=None,
        seconds=setup.seconds(15),
    )


def importing(setup: Setup, name: str) -> Work:
    """Return a function that times an import in a new process."""
    path = []
    if name == peers.FACEBOOK:
        with peers.importable(setup.facebook):
            path = [str(setup.facebook)]
    program = f"import sys; sys.path += {path}; " + CLOCK.format(IMPORTS[name])
    command = [sys.executable, "-W", "ignore", "-c", program]

    def work() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Absent(done.stderr.strip().rpartition("\n")[2])
        return float(done.stdout)

    work()  # warm the file cache
    return work


def help_command() -> Work:
    """Return a function that runs ``querybox --help`` as a shell does."""
    command = [str(Path(sys.executable).with_name("querybox")), "--help"]
    return lambda: subprocess.run(command, capture_output=True, check=True)


def load_ours(setup: Setup) -> Work:
    """Return a function that loads querybox's own file."""
    from querybox.detector import Detector

    path = setup.folder / "querybox.safetensors"
    detector().save(path)
    return lambda: Detector.load(path)


def load_exported(setup: Setup, name: str) -> Work:
    """Return a function that loads an exported model."""
    from querybox.exporting import load_exported

    path = engines.exported(setup, name)
    return lambda: load_exported(path)


def load_facebook(setup: Setup) -> Work:
    """Return a function that builds facebookresearch's model and loads its weights, as its main.py does."""
    import torch

    path = setup.folder / "facebookresearch.pth"
    model, _ = peers.facebook(setup.facebook, detector())
    torch.save({"model": model.state_dict()}, path)

    def work() -> Any:
        model, _ = peers.facebook(setup.facebook)
        model.load_state_dict(torch.load(path, map_location="cpu")["model"])
        return model

    return work


def load_transformers(setup: Setup) -> Work:
    """Return a function that calls ``from_pretrained`` with a folder."""
    from transformers import DetrForObjectDetection
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = setup.folder / "transformers"
    peers.transformers(detector()).save_pretrained(folder)
    return lambda: DetrForObjectDetection.from_pretrained(folder)
