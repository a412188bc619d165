"""A full disk: a tmpfs of the test's own, or, where none can be mounted, a limit on the size of files."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from querybox.training.checkpoint import RunCheckpoint
from torture.case import Case, NotSurvivedError, require
from torture.crashes import go_on, reference
from torture.runs import Plan, end_of, last_words, settings_of, start
from torture.server import fork_server

TIMES = 20, 2
"""How often the disk is full, in the long and in the short form."""
SIZE = 64 << 20
LEFT = 0, 5_000, 200_000
"""Bytes that are left free, in turn."""
LIMITS = 20_000, 60_000, 200_000
"""The same where the size of files is limited; what a run says is a file, too."""
PLACE = "disk"
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
"""Linux's CLONE_NEWUSER and CLONE_NEWNS, which Python knows from 3.12 on."""
Reference = tuple[dict[str, Any], dict[str, int]]


def fill_up(folder: Path, long: bool, times: int, known: Reference, *, mounted: bool) -> str:
    """Fill the disk at `times` moments of a run, look what is left, make room, and go on."""
    disk = folder / PLACE
    expected, counts = known
    failed = 0
    places = sorted(Random(0).sample(range(4, counts["operations"] - 4), times))
    for turn, place in enumerate(places):
        settings = settings_of(folder, f"{PLACE}/run{turn}", long)
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
    """Fill a tmpfs that only a process and its children see; or do without."""
    (folder / PLACE).mkdir()
    context = fork_server()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=fill_own, args=(folder, long, reference(long), sending))
    process.start()
    sending.close()
    try:
        survived, happened = receiving.recv()
    except EOFError:
        survived, happened = False, "the process that fills the disk has ended"
    process.join()
    require(survived, happened)
    return str(happened)


def fill_own(folder: Path, long: bool, known: Reference, told: Connection) -> None:
    """Fill a disk that this process mounts, and tell whether that was survived, and what happened."""
    mounted = mounts(folder / PLACE)
    # Processes of the server would not see it.
    mock.patch("torture.runs.fork_server", return_value=multiprocessing.get_context("fork")).start()
    try:
        happened = fill_up(folder, long, TIMES[not long], known, mounted=mounted)
        told.send((True, f"{'on a tmpfs' if mounted else 'by a limit on the size of files'}: {happened}"))
    except NotSurvivedError as error:
        told.send((False, str(error)))


def mounts(place: Path) -> bool:
    """Mount a tmpfs in namespaces of this process; return whether that is possible."""
    system = ctypes.CDLL(None)
    owners = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
    if system.unshare(NEW_USER | NEW_MOUNTS) != 0:
        return False
    for name, content in owners.items():
        Path("/proc/self", name).write_text(content)
    return bool(system.mount(b"tmpfs", bytes(place), b"tmpfs", 0, f"size={SIZE}".encode()) == 0)


def limit_files(folder: Path, long: bool) -> str:
    """Let no file grow, as a quota does."""
    (folder / PLACE).mkdir()
    return fill_up(folder, long, TIMES[not long] // 2, reference(long), mounted=False)


INTACT = "the older checkpoint is intact; a clear error; it resumes, and comes to the same, bit for bit"
CASES = (
    Case(name="the disk is full", required=INTACT, run=fill_disk),
    Case(name="a limit on the size of files", required=INTACT, run=limit_files),
)
