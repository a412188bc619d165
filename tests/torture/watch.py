"""Watching what the reading of hostile files does: files, folders, sockets, processes, memory.

Each attempt is made in a process whose audit hook (`sys.addaudithook`) notes what leaves a folder. Such a hook does not
see files that C opens by itself; for these, and for code that runs, there are canaries.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from malicious_files import CANARY

from querybox.errors import QueryboxError
from torture.case import require
from torture.fuzz import limit_memory, silence
from torture.server import fork_server

HARMFUL = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "ctypes.dlopen",
)
"""Beginnings of events that no reader may cause, as `sys.addaudithook` names them."""
LOOKING = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink")
"""Events whose first value is a path."""
SYSTEM = tuple(
    os.path.realpath(path)
    for path in (sys.prefix, sys.base_prefix, Path(__file__).parents[2], "/usr", "/proc", "/sys", "/dev")
)
"""Where Python itself, its packages and the operating system look."""
SECRET = "secret"
"""The folder beside that of the attempts, of which nobody may know."""

Ending = Literal["refused", "read"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """To read some files that were just written."""

    name: str
    read: Callable[[], object]
    inside: Path
    """The folder that the reader may look into."""
    ends: tuple[Ending, ...] = ("refused",)
    """How it may end."""


Attack = Callable[[Path, bool], Iterator[Attempt]]
"""Writes files into an empty folder, many in the long form, and yields attempts to read them, each before the next is
written."""


def fresh(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return the folder of the next attempts, written anew."""
    inside = folder / "inside"
    shutil.rmtree(inside, ignore_errors=True)
    inside.mkdir()
    write(inside)
    return inside


@dataclass(slots=True)
class Witness:
    """Notes what this process does that it has no business to do, while it is `inside` a folder."""

    inside: Path | None = None
    """None: anything goes."""
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        """Judge an event of Python's."""
        if self.inside is None:
            return
        if event.startswith(HARMFUL):
            self.seen.append(f"{event}{values!r:.100}")
        elif event in LOOKING and isinstance(values[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(values[0]))
            if not path.startswith((os.path.realpath(self.inside), *SYSTEM)):
                self.seen.append(f"{event} {path}")


def watched(attack: Attack, folder: Path, long: bool) -> str:
    """Make all attempts of an attack; return how many there were.

    Raises:
        NotSurvivedError: Some did not end as they have to, or did what they must not.
    """
    problems = attempt_all(attack, folder, long)
    failed = [f"{name}: {problem}" for name, problem in problems if problem]
    require(not failed, f"{len(failed)} of {len(problems)} attempts: {'; '.join(failed)}")
    return f"{len(problems) - 1} attempts: nothing executed, sent, or touched outside their folder"


def attempt_all(attack: Attack, folder: Path, long: bool) -> list[tuple[str, str]]:
    """Make all attempts in a process of their own; return the name and the problem of each, mostly none."""
    context = fork_server()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=make_attempts, args=(attack, folder, long, sending))
    process.start()
    sending.close()
    problems: list[tuple[str, str]] = []
    with contextlib.suppress(EOFError):
        while True:
            problems.append(receiving.recv())
    process.join()
    require(process.exitcode == 0, f"after {problems[-1:]} the process ended with {process.exitcode}")
    return problems


def make_attempts(attack: Attack, folder: Path, long: bool, results: Connection) -> None:
    """Make all attempts, watched, in a process that has only this to do."""
    silence()
    os.chdir(folder)
    witness = Witness()
    sys.addaudithook(witness)
    limit_memory()
    control = Attempt(name="control", read=trespass, inside=folder / "inside", ends=("read",))
    expected = "EXECUTED, open"
    found = problem_of(control, witness)
    results.send(
        (control.name, "" if found.startswith(expected) else f"'{found}' in place of '{expected} ...'")
    )
    for attempt in attack(folder, long):
        results.send((attempt.name, problem_of(attempt, witness)))
    results.close()


def trespass() -> None:
    """Do what no reader may, so that it is seen that it would be seen."""
    Path(CANARY).touch()


def problem_of(attempt: Attempt, witness: Witness) -> str:
    """Make an attempt; return what was wrong with how it went, or nothing."""
    witness.seen.clear()
    witness.inside = attempt.inside
    try:
        attempt.read()
        ending = "read"
    except QueryboxError as error:
        ending = "refused"
        if "\n" in str(error):
            witness.seen.append("a message of several lines")
    except BaseException as error:  # noqa: BLE001 - whatever escapes is reported
        ending = f"{type(error).__name__}: {error}"
    finally:
        witness.inside = None
    problems = [] if ending in attempt.ends else [ending]
    if Path(CANARY).exists():
        problems.append("EXECUTED")
        Path(CANARY).unlink()
    return ", ".join([*problems, *dict.fromkeys(witness.seen)])
