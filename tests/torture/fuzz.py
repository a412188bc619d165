"""Mutation fuzzing: small sound files are spoiled in many ways and read.

Each mutant is made of (sample, number) alone. It is read in a process of its own, which the kernel ends where a
mutant takes more than `CPU_SECONDS`, wherever in C it hangs, and which gets at most `MEMORY` beside what it began with.
A mutant that is neither read nor refused with one of the library's errors is kept in `KEPT`, and all that it raised.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from querybox.errors import QueryboxError
from torture.case import Case, require
from torture.mutations import spoil
from torture.samples import SAMPLES, Sample
from torture.server import fork_server

CPU_SECONDS = 5.0
WALL_SECONDS = 200.0
"""The same for a mutant that hangs without computing; a busy machine must not be taken for that."""
MEMORY = 2 << 30
"""Bytes; the largest image that is read takes a fourth of it, once for each mode on its way to RGB."""
KEPT = Path(tempfile.gettempdir()) / "querybox-fuzz"
MOST_DEATHS = 5
LONG, SHORT = 1000, 20
"""Mutants for each of a sample's shares, which are a hundred."""
AT, READ, REFUSED, SLOWEST = range(4)
"""What a process reports: the number of its mutant, how many were read and refused, the seconds of one."""


def fuzz(sample: Sample, folder: Path, long: bool) -> str:
    """Read all mutants of a sample.

    Raises:
        NotSurvivedError: Some were not survived.
    """
    count = sample.shares * (LONG if long else SHORT)
    context = fork_server()
    reported = context.RawArray("d", 4)
    for old in KEPT.glob(f"{slug(sample)}-*"):
        shutil.rmtree(old)
    start, deaths = 0, 0
    while start < count and deaths < MOST_DEATHS:
        work = folder / str(deaths)
        work.mkdir()
        process = context.Process(target=read_all, args=(sample.name, range(start, count), reported, work))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        deaths += 1
        keep(
            sample,
            int(reported[AT]),
            work,
            f"the process ended with {process.exitcode}, a signal if negative",
        )
        start = int(reported[AT]) + 1
    kept = sorted(str(path) for path in KEPT.glob(f"{slug(sample)}-*"))
    happened = f"{count:,} mutants: {reported[READ]:,.0f} read, {reported[REFUSED]:,.0f} refused"
    require(
        not kept and reported[READ] + reported[REFUSED] == count,
        f"{happened}, the others not survived; see {', '.join(kept)}",
    )
    return f"{happened}; the slowest took {reported[SLOWEST]:.2f} s"


def read_all(name: str, numbers: range, reported: Any, folder: Path) -> None:
    """Read mutants, in a process that may be ended by any of them."""
    sample = next(sample for sample in SAMPLES if sample.name == name)
    silence()
    kinds = sample.write(folder)
    sound = {file: (folder / file).read_bytes() for file in kinds}
    for file in kinds:
        sample.read(folder, folder / file)
    limit_memory()
    seen = set()
    for number in numbers:
        reported[AT] = number
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        begun = time.process_time()
        file, content = mutant(sample, kinds, sound, number)
        rewrite(folder / file, content)
        try:
            sample.read(folder, folder / file)
        except QueryboxError:
            reported[REFUSED] += 1
        except BaseException as error:  # noqa: BLE001 - whatever else it is, it is what is looked for
            origin = repr(traceback.extract_tb(error.__traceback__)[-1]), type(error)
            if origin not in seen:
                keep(sample, number, folder, traceback.format_exc())
            seen.add(origin)
        else:
            reported[READ] += 1
        rewrite(folder / file, sound[file])
        reported[SLOWEST] = max(reported[SLOWEST], time.process_time() - begun)


def rewrite(file: Path, content: bytes) -> None:
    """Write a file anew: what is written to a file that was made empty, some systems write to the disk at once."""
    file.unlink()
    file.write_bytes(content)


def mutant(sample: Sample, kinds: dict[str, str], sound: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """Return which file is spoiled in a mutant, and its content."""
    random = Random(f"{sample.name} {number}")
    file = random.choice(list(kinds))
    return file, spoil(sound[file], kinds[file], random)


def silence() -> None:
    """Let this process complain to nobody: what it reads gives every reason to."""
    warnings.simplefilter("ignore")
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C write there, too


def limit_memory() -> None:
    """Let this process have `MEMORY` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def keep(sample: Sample, number: int, folder: Path, why: str) -> None:
    """Keep the folder with the mutant, and why."""
    kept = KEPT / f"{slug(sample)}-{number}"
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    (kept / "why.txt").write_text(why, encoding="utf-8")


def slug(sample: Sample) -> str:
    """Return the name of a sample as a file may have it."""
    return "".join(letter if letter.isalnum() else "-" for letter in sample.name)


CASES = [
    Case(
        name=f"mutants of {sample.name}",
        required=f"read or refused by an error of the library's own, in {CPU_SECONDS:.0f} s",
        run=partial(fuzz, sample),
    )
    for sample in SAMPLES
]
