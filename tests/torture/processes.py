"""Two training processes of which one ends, hangs or is asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache, partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from two_processes import environments

from querybox.training import RunSettings
from torture.case import Case, require
from torture.runs import Plan, end_of, last_words, require_equal, result_of, settings_of, start

TIMES = 6, 1
"""How often one is killed, in the long and in the short form."""
SECONDS = 60.0
HANGS = 5.0
"""Seconds after which a process that does not answer is given up; ten minutes outside of this test."""


def start_two(
    settings: RunSettings, plans: Sequence[dict[str, Any]] = ({}, {}), *, resume: bool = False
) -> list[ForkServerProcess]:
    """Begin, or resume, a run of two processes on the CPU."""
    return [
        start(settings, Plan(environment=environment, **plan), resume=resume)
        for environment, plan in zip(environments(), plans, strict=True)
    ]


def finish_two(settings: RunSettings, *, resume: bool = False) -> dict[str, Any]:
    """Let a run of two processes go to its end, and return what it comes to."""
    for rank, process in enumerate(start_two(settings, resume=resume)):
        code = end_of(process)
        require(code == 0, f"process {rank} ended with {code}: {last_words(settings, str(rank))}")
    return result_of(settings)


@cache
def reference_of_two(long: bool) -> dict[str, Any]:
    """Return the result of a run of two processes that was left alone; computed once."""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        return finish_two(settings_of(Path(folder), "alone", long))


def lose_one(folder: Path, long: bool, *, number: int, timeout: float | None = None) -> str:
    """Kill or stop one of two processes in the middle of an epoch."""
    expected = reference_of_two(long)
    slowest, times = 0.0, TIMES[not long] if timeout is None else 1
    for turn in range(times):
        settings = settings_of(folder, f"lost{turn}", long)
        lost = 1 - turn % 2
        plans: list[dict[str, Any]] = [{"timeout": timeout}, {"timeout": timeout}]
        plans[lost]["signal_in_step"] = (1 + turn % 4, number)
        processes = start_two(settings, plans)
        while processes[lost].is_alive() and not stopped(processes[lost].pid or 0):
            time.sleep(0.05)
        begun = time.monotonic()
        code = end_of(processes[1 - lost])
        slowest = max(slowest, time.monotonic() - begun)
        processes[lost].kill()
        end_of(processes[lost])
        words = last_words(settings, str(1 - lost))
        require(code == 2 and words.startswith("ProcessError"), f"the other ended with {code}: {words}")
        finish_two(settings, resume=True)
        require_equal(settings, expected, f"process {lost} was lost")
    require(slowest < SECONDS, f"the other took {slowest:.1f} s to end")
    return f"{times} of {times}: ProcessError after at most {slowest:.1f} s; resumed, equal"


def stopped(pid: int) -> bool:
    """Whether a process is stopped by SIGSTOP."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def stop_one(folder: Path, long: bool) -> str:
    """Ask one of two processes to stop."""
    expected = reference_of_two(long)
    settings = settings_of(folder, "stopped", long)
    processes = start_two(settings, [{}, {"signal_in_step": (2, signal.SIGTERM)}])
    codes = [end_of(process, SECONDS) for process in processes]
    require(codes == [143, 143], f"ended with {codes}: {last_words(settings)}")
    finish_two(settings, resume=True)
    require_equal(settings, expected, "one was asked to stop")
    return "both stopped with a checkpoint and code 143; resumed, equal"


def lose_one_of_a_launcher(folder: Path, long: bool) -> str:
    """Kill one of two processes that torchrun has started."""
    if not long:
        return "in the long form alone"
    settings = settings_of(folder, "launched", long, epochs=500)
    path = folder / "run.yaml"
    path.write_text(settings.model_dump_json())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "-m", "querybox", "train", str(path)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    seen = time.monotonic()
    while not (settings.folder / "checkpoint.safetensors").exists():
        require(
            time.monotonic() - seen < 4 * SECONDS and launcher.poll() is None, "no checkpoint was written"
        )
        time.sleep(0.1)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    begun = time.monotonic()
    _, errors = launcher.communicate(timeout=4 * SECONDS)
    seconds = time.monotonic() - begun
    require(launcher.returncode != 0 and seconds < SECONDS, f"torchrun took {seconds:.1f} s to end")
    named = "ProcessError" in errors
    path.write_text(settings.replace(train={**settings.train.model_dump(), "max_time": 1}).model_dump_json())
    subprocess.run([*command, "--resume"], env=environment, capture_output=True, check=True)
    return f"all ended after {seconds:.1f} s{', with ProcessError' if named else ''}; resumed"


CASES = (
    Case(
        name="SIGKILL of one of two processes",
        required="the other ends within 60 s with a named error; the uninterrupted result after a resume",
        run=partial(lose_one, number=signal.SIGKILL),
    ),
    Case(
        name="one of two processes hangs",
        required="the other gives it up",
        run=partial(lose_one, number=signal.SIGSTOP, timeout=HANGS),
    ),
    Case(
        name="SIGTERM to one of two processes",
        required="both stop with a checkpoint",
        run=stop_one,
    ),
    Case(
        name="SIGKILL of one of two processes of torchrun",
        required="all end within 60 s; resumable",
        run=lose_one_of_a_launcher,
    ),
)
