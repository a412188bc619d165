"""Measures several ways of doing one thing, in turns, after it has made sure that they all do the same."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.goals import Goal, GoalResult

Work = Callable[[], Any]
"""Does the work of a row once and returns the answer."""

PAUSE = 0.05
"""Seconds before each sample: thread pools go on spinning for a while after their work is done."""
SHORTEST = 0.05
"""Seconds that a timed sample lasts at least; quicker work is repeated within it."""


class Absent(Exception):  # noqa: N818 - no fault, but a state
    """What a side needs is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way of doing a row's work."""

    name: str
    build: Callable[[], Work]
    """Prepares all that is not to be timed."""
    tolerance: float = 0.0
    """How far its answer may be from that of the first side."""
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    """What it builds and works in where it has a process of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that several sides do."""

    name: str
    title: str
    sides: Sequence[Side]
    """The first is the one that the others' answers are compared with."""
    difference: Callable[[Any, Any], float] | None
    """How far one answer is from another; None where the sides do not answer the same question."""
    goals: Sequence[Goal] = ()
    unit: str = "s"
    value: Callable[[Any], float] | None = None
    """What is measured, where it is part of the answer; None measures how long the work takes.

    Such work needs no warm-up: the answer that is compared counts as a sample.
    """
    seconds: float = 30.0
    """Time for the samples, roughly."""
    rounds: tuple[int, int] = (3, 25)
    """Fewest and most rounds of samples, whatever time they take."""
    x: float | None = None
    """The size of the task, for a row that is one point of a curve; rows of one title make a curve."""


@dataclass(slots=True, kw_only=True)
class SideResult:
    """What became of a side."""

    name: str
    status: Literal["measured", "absent", "failed", "differs"] = "measured"
    note: str = ""
    """Why it was not measured."""
    difference: float | None = None
    """From the answer of the row's first side; None where it has not answered, or is not compared."""
    tolerance: float = 0.0
    samples: list[float] = field(default_factory=list)
    """Of each round; all measured sides have as many."""


@dataclass(slots=True, kw_only=True)
class RowResult:
    """What became of a row."""

    name: str
    title: str
    unit: str
    sides: list[SideResult]
    goals: list[GoalResult] = field(default_factory=list)
    x: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    """When, where and with which versions it was measured."""


def measure(row: Row, clock: Callable[[], float] = time.perf_counter) -> RowResult:
    """Build, compare and measure the sides of a row; one that cannot take part says why.

    Args:
        row: What to measure.
        clock: Tells the time in seconds.
    """
    results = [SideResult(name=side.name, tolerance=side.tolerance) for side in row.sides]
    works = compare(row, results)
    gc.collect()
    gc.freeze()  # what is built by now stays to the end: no collection needs to look at it
    try:
        take_samples(row, works, clock)
    finally:
        gc.unfreeze()
    samples = {result.name: result.samples for result in results if result.status == "measured"}
    goals = [goal.judge(samples) for goal in row.goals]
    return RowResult(name=row.name, title=row.title, unit=row.unit, sides=results, goals=goals, x=row.x)


def compare(row: Row, results: Sequence[SideResult]) -> list[tuple[SideResult, Work]]:
    """Build every side and let it answer once; return those whose answer is the first one's."""
    works: list[tuple[SideResult, Work]] = []
    first = results[0]
    reference: Any = None
    for side, result in zip(row.sides, results, strict=True):
        with reporting(result):
            if first.status != "measured":
                raise Absent(f"nothing to compare it with: {first.name} is {first.status}")
            work = side.build()
            answer = work()
            if result is first:
                reference = answer
            if row.difference is not None:
                result.difference = row.difference(reference, answer)
            if (
                result.difference is not None and not result.difference <= side.tolerance
            ):  # NaN is far from all
                result.status = "differs"
                result.note = (
                    f"its answer is {result.difference:.2g} away; at most {side.tolerance:g} would do"
                )
            else:
                works.append((result, work))
                if row.value is not None:
                    result.samples.append(row.value(answer))
    return works


def take_samples(row: Row, works: Sequence[tuple[SideResult, Work]], clock: Callable[[], float]) -> None:
    """Sample all sides in turns, the first, the second, ... and again, until the row's time is up."""
    least, most = row.rounds
    start = clock()
    for turn in range(most):
        if turn >= least and clock() - start > row.seconds:
            break
        for result, work in works:
            if result.status == "measured":
                with reporting(result):
                    result.samples.append(sample(row, work, clock))


def sample(row: Row, work: Work, clock: Callable[[], float]) -> float:
    """Return what the row measures of the work: by default how long it takes, the mean of some where it is quick."""
    time.sleep(PAUSE)
    gc.collect()
    gc.disable()
    try:
        if row.value is not None:
            return row.value(work())
        start, done = clock(), 0
        while True:
            work()
            done += 1
            seconds = clock() - start
            if seconds >= SHORTEST:
                return seconds / done
    finally:
        gc.enable()


@contextmanager
def reporting(result: SideResult) -> Iterator[None]:
    """Write down why a side cannot take part, and let the others go on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        reason = str(error).strip().partition("\n")[0]
        absent = isinstance(error, Absent | ImportError)
        result.status = "absent" if absent else "failed"
        result.note = reason if absent else f"{type(error).__name__}: {reason}"
        result.samples.clear()
