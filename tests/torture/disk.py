"""A full disk: a tmpfs of the test's own, or, where none can be mounted, a limit on the size of files."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from random import Random
from unittest import mock

from querybox.training.checkpoint import RunCheckpoint
from torture.case import Case, require
from torture.crashes import go_on, reference
from torture.runs import Plan, end_of, last_words, settings_of, start

TIMES = 20, 2
"""How often the disk is full, in the long and in the short form."""
SIZE = 64 << 20
LEFT = 0, 5_000, 200_000
"""Bytes that are left free, in turn."""
LIMITS = 20_000, 60_000, 200_000
"""The same where the size of files is limited; what a run says is a file, too."""
PLACE = "disk"


def fill_up(folder: Path, times: int, *, mounted: bool) -> str:
    """Fill the disk at `times` moments of a run, look what is left, make room, and go on."""
    disk = folder / PLACE
    expected, counts = reference()
    failed = 0
    places = sorted(Random(0).sample(range(4, counts["operations"] - 4), times))
    for turn, place in enumerate(places):
        settings = settings_of(folder, f"{PLACE}/run{turn}")
        left = (LEFT if mounted else LIMITS)[turn % len(LEFT)]
        full = (place, disk if mounted else None, left)
        code = end_of(start(settings, Plan(fill_before=full)))
        words = last_words(settings)
        require(code in (0, 2), f"a full disk ended the run with {code}: {words}")
        if code:
            require(words.startswith(f"DiskFullError: {settings.output}"), f"the error says {words}")
            require("Free some space" in words and "is unchanged" in words, f"the error says {words}")
            failed += 1
        checkpoint = settings.folder / "checkpoint.safetensors"
        if checkpoint.exists():
            RunCheckpoint.read(checkpoint)
        (disk / "filler").unlink(missing_ok=True)
        go_on(settings, expected, f"full before operation {place}")
    require(failed > 0, "no run met the full disk")
    return f"{times} of {times} intact, resumed and equal; {failed} runs were ended by it, with DiskFullError"


def fill_disk(folder: Path, long: bool) -> str:
    """Fill a tmpfs that only this process and its children see; or do without."""
    times = TIMES[not long]
    (folder / PLACE).mkdir()
    mount = f"mount -t tmpfs -o size={SIZE} tmpfs {folder / PLACE}"
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    try:
        may = subprocess.run([*command, mount], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        may = False
    if not may:
        return f"by a limit on the size of files: {fill_up(folder, times, mounted=False)}"
    program = f"{mount} && exec {sys.executable} -m torture.disk {folder} {times}"
    done = subprocess.run(
        [*command, program], capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    words = (done.stdout + done.stderr).strip().splitlines()
    require(done.returncode == 0, "; ".join(words[-3:]))
    return f"on a tmpfs: {words[-1]}"


def limit_files(folder: Path, long: bool) -> str:
    """Let no file grow, as a quota does."""
    (folder / PLACE).mkdir()
    return fill_up(folder, TIMES[not long] // 2, mounted=False)


INTACT = "the older checkpoint is intact; a clear error; it resumes, and comes to the same, bit for bit"
CASES = (
    Case(name="the disk is full", required=INTACT, run=fill_disk),
    Case(name="a limit on the size of files", required=INTACT, run=limit_files),
)

if __name__ == "__main__":
    import accelerate  # noqa: F401 - once for all runs

    # A server of this namespace would have to import everything once more.
    mock.patch("torture.runs.fork_server", return_value=multiprocessing.get_context("fork")).start()
    print(fill_up(Path(sys.argv[1]), int(sys.argv[2]), mounted=True))
