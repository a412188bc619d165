"""Trainings that are ended at the worst moments: each is resumed, and comes to what it would have come to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from querybox.training import RunSettings
from torture.case import Case, require
from torture.runs import (
    EVALUATES,
    Plan,
    end_of,
    finish,
    last_words,
    log_of,
    members,
    require_equal,
    result_of,
    settings_of,
    start,
    wait_for_none,
    wait_for_server,
)

OPERATIONS = 100, 2
"""Operations on files before which a run is killed, in the long and in the short form; spread over the whole run."""
TORN = 50, 2
"""Saves of a weights file within which it is killed."""
MOMENTS = 50, 1
"""Moments by the clock at which it is killed, half of them with two workers; so that is 200 in the long form."""
STOPS = 20, 2
"""Moments at which it is asked to stop."""
PROGRAMS = 4
"""`querybox train` that are killed, as somebody would start it; in the long form alone."""
STOP_SECONDS = 30.0
DEATH_SECONDS = 60.0
SHARES = 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99


@cache
def reference(long: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the result of a run that was left alone, and its numbers of operations and saves; computed once."""
    return run_alone(long)[:2]


def duration(long: bool) -> float:
    """Return the seconds that the run of `reference` took."""
    return run_alone(long)[2]


@cache
def run_alone(long: bool) -> tuple[dict[str, Any], dict[str, int], float]:
    """Leave a run alone; return its result, its numbers of operations and saves, and how long it took."""
    wait_for_server()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        settings, count = settings_of(Path(folder), "alone", long), Path(folder) / "count.json"
        begun = time.monotonic()
        finish(settings, Plan(count=count))
        seconds = time.monotonic() - begun
        counts: dict[str, int] = json.loads(count.read_text())
        return result_of(settings), counts, seconds


def go_on(settings: RunSettings, expected: dict[str, Any], what: str) -> None:
    """Resume a run that was ended, as often as it takes, and compare what it comes to; then remove it."""
    finish(settings, resume=settings.folder.is_dir())
    require_equal(settings, expected, what)
    shutil.rmtree(settings.folder)


def kill_before_operations(folder: Path, long: bool) -> str:
    """SIGKILL between any two operations on files."""
    expected, counts = reference(long)
    number = OPERATIONS[not long]
    places = sorted(Random(0).sample(range(1, counts["operations"] + 1), min(number, counts["operations"])))
    for place in places:
        settings = settings_of(folder, f"before{place}", long)
        code = end_of(start(settings, Plan(kill_before=place)))
        require(code == -signal.SIGKILL, f"the run ended with {code} before operation {place}")
        if place % 3 == 0:  # the run that goes on is killed, too
            again = Plan(kill_before=1 + place % 20)
            end_of(start(settings, again, resume=settings.folder.is_dir()))
        go_on(settings, expected, f"killed before operation {place}")
    return (
        f"killed before {len(places)} of {counts['operations']} operations on files, one in three again while it "
        "resumed: all resumed, all equal"
    )


def kill_within_saves(folder: Path, long: bool) -> str:
    """SIGKILL while a weights file is half written."""
    expected, counts = reference(long)
    cuts = [(save, share) for save in range(1, counts["saves"] + 1) for share in SHARES]
    cuts = Random(0).sample(cuts, min(TORN[not long], len(cuts)))
    for save, share in cuts:
        settings = settings_of(folder, f"torn{save}-{share}", long)
        code = end_of(start(settings, Plan(tear=(save, share))))
        require(code == -signal.SIGKILL, f"the run ended with {code} in save {save}")
        go_on(settings, expected, f"killed in save {save}, at {share:.0%}")
    return f"killed within {len(cuts)} saves: all resumed, all equal"


def kill_at_moments(folder: Path, long: bool, *, workers: int) -> str:
    """SIGKILL by the clock."""
    (expected, _), seconds = reference(long), duration(long)
    random, kills, runs = Random(workers), 0, 0
    while kills < max(1, MOMENTS[not long] // 2):
        settings = settings_of(folder, f"moment{runs}", long, workers=workers)
        for _ in range(3):  # at most, or a short-lived run would never come to its end
            process = start(settings, resume=settings.folder.is_dir())
            process.join(random.uniform(0.0, seconds))
            killed = process.exitcode is None
            process.kill()
            end_of(process)
            wait_for_none([process.pid or 0], DEATH_SECONDS)
            kills += killed
            if not killed:
                break
        go_on(settings, expected, f"killed at moments, run {runs}")
        runs += 1
    return f"killed {kills} times in {runs} runs: all resumed, all equal; no worker lived on"


def ask_to_stop(folder: Path, long: bool) -> str:
    """SIGTERM or Ctrl-C at any moment."""
    (expected, _), seconds = reference(long), duration(long)
    random, slowest, saved, number = Random(1), 0.0, 0, STOPS[not long]
    for turn in range(number):
        settings = settings_of(folder, f"stop{turn}", long, workers=turn % 3 % 2)
        # A third of them in a slow evaluation, which is where most of the time of such a run is spent.
        process = start(settings, Plan(slow=2.0 if turn % 3 == 2 else 0.0))
        process.join(random.uniform(0.1, seconds) if turn % 3 < 2 else seconds)
        signalled = signal.SIGINT if turn % 2 else signal.SIGTERM
        begun, running = time.monotonic(), process.exitcode is None
        if running:
            os.kill(process.pid or 0, signalled)
        code = end_of(process)
        slowest = max(slowest, time.monotonic() - begun)
        allowed = {0, 143, -signal.SIGTERM} if signalled is signal.SIGTERM else {0, 1, -signal.SIGINT}
        require(
            code in allowed, f"{signalled.name} at moment {turn}: ended with {code}: {last_words(settings)}"
        )
        saved += (settings.folder / "checkpoint.safetensors").exists()
        go_on(settings, expected, f"{signalled.name} at moment {turn}")
    require(slowest < STOP_SECONDS, f"a run took {slowest:.1f} s to stop")
    return f"asked {number} times, {saved} with a checkpoint: all resumed, all equal; at most {slowest:.1f} s"


def kill_programs(folder: Path, long: bool) -> str:
    """SIGKILL of the command line."""
    if not long:
        return "in the long form alone"
    settings = settings_of(folder, "program", long, epochs=40)
    path = folder / "run.yaml"
    path.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "querybox", "train", str(path)]
    for turn in range(PROGRAMS):
        process = subprocess.Popen([*command, *(["--resume"] if turn else [])], stderr=subprocess.DEVNULL)
        seen = time.monotonic()
        while not (settings.folder / "checkpoint.safetensors").exists():
            require(time.monotonic() - seen < 4 * DEATH_SECONDS, "querybox train has written no checkpoint")
            time.sleep(0.05)
        time.sleep(Random(turn).uniform(0, 2))
        process.kill()
        process.wait()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    require(
        done.returncode == 0, f"querybox train --resume ended with {done.returncode}: {done.stderr[-300:]}"
    )
    alone = settings.replace(output=str(folder / "alone"))
    path.write_text(alone.model_dump_json())
    subprocess.run(command, capture_output=True, check=True)
    require_equal(settings, result_of(alone), "querybox train")
    return f"killed {PROGRAMS} times: resumed each time, equal"


def kill_a_worker(folder: Path, long: bool) -> str:
    """SIGKILL of a process that loads images."""
    expected, _ = reference(long)
    settings = settings_of(folder, "worker", long, workers=2)
    process = start(settings, Plan(slow=1.0))  # it lives while the evaluation goes on
    session, begun = process.pid or 0, time.monotonic()
    log = log_of(settings)
    while not (log.exists() and EVALUATES in log.read_text()) or len(living := members(session)) < 2:
        require(time.monotonic() - begun < DEATH_SECONDS and process.is_alive(), "no worker was started")
        time.sleep(0.02)
    os.kill(max(living), signal.SIGKILL)
    begun = time.monotonic()
    code = end_of(process, DEATH_SECONDS)
    seconds = time.monotonic() - begun
    words = last_words(settings)
    require(code == 2 and words.startswith("WorkerError"), f"ended with {code}: {words}")
    wait_for_none([session], DEATH_SECONDS)
    go_on(settings, expected, "a worker was killed")
    return f"WorkerError after {seconds:.1f} s, nobody lives on; resumed, equal"


def leave_workers(folder: Path, long: bool) -> str:
    """SIGKILL of a run that has workers."""
    slowest = 0.0
    for method in ("fork", "forkserver"):
        settings = settings_of(folder, method, long, workers=2)
        process = start(settings, Plan(slow=1.0, start_method=method))
        session, begun = process.pid or 0, time.monotonic()
        while not (settings.folder / "record.json").exists() or len(members(session)) < 3:
            require(
                time.monotonic() - begun < 2 * DEATH_SECONDS and process.is_alive(), "no workers were started"
            )
            time.sleep(0.02)
        process.kill()
        end_of(process)
        slowest = max(slowest, wait_for_none([session], DEATH_SECONDS))
    return f"its workers, forked or of a fork server, ended after {slowest:.1f} s"


def vary_workers(folder: Path, long: bool) -> str:
    """The same seed with any number of workers."""
    expected, _ = reference(long)
    for workers in (1, 2) if long else (2,):
        settings = settings_of(folder, f"workers{workers}", long, workers=workers)
        finish(settings)
        require_equal(settings, expected, f"{workers} workers")
    return f"0{', 1' if long else ''} and 2 workers: equal, bit for bit"


EQUAL = "resumes every time; the same files, bit for bit, as a run that was left alone"
CASES = (
    Case(name="SIGKILL between two operations on files", required=EQUAL, run=kill_before_operations),
    Case(name="SIGKILL within a save", required=EQUAL, run=kill_within_saves),
    Case(name="SIGKILL at any moment, no workers", required=EQUAL, run=partial(kill_at_moments, workers=0)),
    Case(name="SIGKILL at any moment, 2 workers", required=EQUAL, run=partial(kill_at_moments, workers=2)),
    Case(name="SIGKILL of `querybox train`", required=EQUAL, run=kill_programs),
    Case(name="SIGTERM and Ctrl-C", required="checkpoint, then exit, within 30 s", run=ask_to_stop),
    Case(
        name="SIGKILL of a loader worker",
        required="a named error within 60 s, resumable",
        run=kill_a_worker,
    ),
    Case(name="SIGKILL of a run with workers", required="its workers end", run=leave_workers),
    Case(name="the same seed", required="the same weights, whatever the number of workers", run=vary_workers),
)
