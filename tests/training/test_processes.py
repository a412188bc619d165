"""Several processes, and signals: what only shows when a run is a program of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torture.server import fork_server
from two_processes import run_both

from querybox.training import RunSettings, train

PROGRAM = """
import json, sys
from querybox.training import RunSettings, train
with open(sys.argv[1]) as file:
    train(RunSettings.parse(json.load(file)), resume="resume" in sys.argv)
"""


def command(settings: RunSettings, folder: Path, *arguments: str) -> list[str]:
    """Write a program that trains with `settings`, and return how to start it, after the name of an interpreter."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "settings.json").write_text(settings.model_dump_json())
    return [str(folder / "program.py"), str(folder / "settings.json"), *arguments]


def test_two_processes_with_half_the_batch_each_equal_one_with_the_whole(
    run_settings: Callable[..., RunSettings], boxes_json: Path, tmp_path: Path
) -> None:
    def launch(settings: RunSettings) -> None:
        run_both(PROGRAM, tmp_path, *command(settings, tmp_path)[1:])

    one, two = one_and_two_processes(run_settings, boxes_json, launch)
    assert evaluated(two) == evaluated(one)
    compare_rows(two, one, 1e-5)
    torch.testing.assert_close(
        load_file(two / "last.safetensors"), load_file(one / "last.safetensors"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.device
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_with_half_the_batch_each_equal_one_with_the_whole(
    run_settings: Callable[..., RunSettings],
    boxes_json: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def launch(settings: RunSettings) -> None:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}
        subprocess.run([*torchrun, *command(settings, tmp_path)], env=environment, check=True, timeout=120)

    one, two = one_and_two_processes(run_settings, boxes_json, launch)
    compare_rows(two, one, 1e-3)  # halves of a batch may be computed by other kernels than the whole


def one_and_two_processes(
    run_settings: Callable[..., RunSettings], boxes_json: Path, launch: Callable[[RunSettings], None]
) -> tuple[Path, Path]:
    """Train in this process and in two others, which `launch` starts; return the folders of both runs."""

    def settings(output: str) -> RunSettings:
        same_size = {
            "scales": [64],
            "crop": 0.0,
            "val": str(boxes_json),
        }  # or the halves would be padded otherwise than the whole
        return run_settings(output, model={"dropout": 0.0}, data=same_size, epochs=3, batch_size=8)

    one, other = train(settings("one")).run_dir, settings("two")
    launch(other)
    two = other.folder
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    return one, two


def evaluated(folder: Path) -> list[str]:
    """Return the last AR100 of a run and whether the report is there."""
    *_, last = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [last["AR100"], *(path.name for path in folder.glob("report.html"))]


def compare_rows(folder: Path, expected: Path, tolerance: float) -> None:
    """Hold the losses in one run's metrics against another's."""
    rows, wanted = (
        list(csv.DictReader((each / "metrics.csv").read_text().splitlines())) for each in (folder, expected)
    )
    assert len(rows) == len(wanted) == 3
    for row, want in zip(rows, wanted, strict=True):
        for name in (name for name in want if "loss" in name or name == "grad_norm"):
            assert float(row[name]) == pytest.approx(float(want[name]), rel=tolerance), name


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to processes on Windows")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_checkpoint_from_which_it_goes_on(
    run_settings: Callable[..., RunSettings], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    settings = run_settings(epochs=500, data={"workers": 1})
    run = fork_server().Process(target=train_in_session, args=(settings, tmp_path / "errors.txt"))
    run.start()
    assert run.pid is not None
    wait_for(tmp_path / "run" / "metrics.csv")
    os.killpg(run.pid, number) if number is signal.SIGINT else os.kill(run.pid, number)
    run.join(timeout=120)
    errors = (tmp_path / "errors.txt").read_text()
    assert run.exitcode == code, errors
    assert number is signal.SIGTERM or errors.rstrip().endswith("KeyboardInterrupt"), errors
    steps = (tmp_path / "run" / "metrics.csv").read_text().count("\n")
    assert "checkpoint.safetensors" in {path.name for path in (tmp_path / "run").iterdir()}
    assert train(settings.replace(train={**settings.train.model_dump(), "epochs": steps}), resume=True)


def train_in_session(settings: RunSettings, errors: Path) -> None:
    """Train as the leader of a new session, whose processes a terminal would interrupt together."""
    os.setsid()
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    train(settings)


def wait_for(path: Path, seconds: float = 120) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)
