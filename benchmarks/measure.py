"""Measure several implementations of the same work, interleaved, after checking that their results agree."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import device

from benchmarks.goals import Goal, GoalResult
from querybox.precision import ComputedPrecision, is_native

Work = Callable[[], Any]
"""Does the work of a row once and returns the result."""

PAUSE = 0.05
"""Seconds to wait before each sample, because thread pools spin for a while after their work is done."""
SHORTEST = 0.05
"""Minimum duration of a timed sample in seconds; shorter work is repeated within it."""


class Absent(Exception):  # noqa: N818 - a state, not an error
    """Something that a side needs is not installed, or the CPU does not have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One implementation of a row's work."""

    name: str
    build: Callable[[], Work]
    """Prepares the work; not timed."""
    tolerance: float = 0.0
    """Largest allowed difference from the result of the first side."""
    compared: bool = True
    """Whether its result is compared; False for another model, of which only the time is of interest."""
    precision: ComputedPrecision = "float32"
    """Precision of its computations; the side is absent on a CPU that would emulate it, which is many times slower."""
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context in which it is built and run if it has its own process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A benchmark: the same work done by several sides."""

    name: str
    title: str
    sides: Sequence[Side]
    """The results of the others are compared with that of the first."""
    difference: Callable[[Any, Any], float] | None
    """Computes the difference of two results; None if the sides' results cannot be compared."""
    goals: Sequence[Goal] = ()
    unit: str = "s"
    value: Callable[[Any], float] | None = None
    """Extracts the measured value from the result; None measures the duration.

    Such work needs no warm-up: the result that is compared also counts as a sample.
    """
    seconds: float = 30.0
    """Approximate time for all samples."""
    rounds: tuple[int, int] = (3, 25)
    """Minimum and maximum number of rounds, whatever time they take."""
    x: float | None = None
    """Size of the task, for a row that is one point of a curve; rows with the same title form a curve."""


@dataclass(slots=True, kw_only=True)
class SideResult:
    """Result of a side."""

    name: str
    status: Literal["measured", "absent", "failed", "differs"] = "measured"
    note: str = ""
    """Why it was not measured."""
    difference: float | None = None
    """Difference from the result of the row's first side; None if there is no result, or it is not compared."""
    tolerance: float = 0.0
    samples: list[float] = field(default_factory=list)
    """Samples, one per round; all measured sides have the same number."""


@dataclass(slots=True, kw_only=True)
class RowResult:
    """Result of a row."""

    name: str
    title: str
    unit: str
    sides: list[SideResult]
    goals: list[GoalResult] = field(default_factory=list)
    x: float | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    """When, where and with which versions it was measured."""


def measure(row: Row, clock: Callable[[], float] = time.perf_counter) -> RowResult:
    """Build, compare and measure the sides of a row; the result of a side that cannot be measured says why.

    Args:
        row: What to measure.
        clock: Returns the time in seconds.
    """
    results = [SideResult(name=side.name, tolerance=side.tolerance) for side in row.sides]
    works = compare(row, results)
    gc.collect()
    frozen = gc.get_freeze_count()
    gc.freeze()  # objects built so far live until the end; collections can skip them
    try:
        take_samples(row, works, clock)
    finally:
        if not frozen:  # by the caller, as the tests do
            gc.unfreeze()
    samples = {result.name: result.samples for result in results if result.status == "measured"}
    goals = [goal.judge(samples) for goal in row.goals]
    return RowResult(name=row.name, title=row.title, unit=row.unit, sides=results, goals=goals, x=row.x)


def compare(row: Row, results: Sequence[SideResult]) -> list[tuple[SideResult, Work]]:
    """Build every side and run it once; return those whose result agrees with the first side's."""
    works: list[tuple[SideResult, Work]] = []
    first = results[0]
    reference: Any = None
    for side, result in zip(row.sides, results, strict=True):
        with reporting(result):
            if first.status != "measured":
                raise Absent(f"nothing to compare it with: {first.name} is {first.status}")
            if not is_native(side.precision, device("cpu")):
                raise Absent(f"this CPU emulates {side.precision}")
            work = side.build()
            answer = work()
            if result is first:
                reference = answer
            if row.difference is not None and side.compared:
                result.difference = row.difference(reference, answer)
            if result.difference is not None and not result.difference <= side.tolerance:  # also true for NaN
                result.status = "differs"
                result.note = (
                    f"its result differs by {result.difference:.2g}; expected at most {side.tolerance:g}"
                )
            else:
                works.append((result, work))
                if row.value is not None:
                    result.samples.append(row.value(answer))
    return works


def take_samples(row: Row, works: Sequence[tuple[SideResult, Work]], clock: Callable[[], float]) -> None:
    """Sample all sides in turn, round by round, until the row's time is up."""
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
    """Return one sample: the row's `value`, or the duration of the work, averaged over repetitions if it is short."""
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
    """Record why a side cannot be measured, and continue with the others."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        reason = str(error).strip().partition("\n")[0]
        absent = isinstance(error, Absent | ImportError)
        result.status = "absent" if absent else "failed"
        result.note = reason if absent else f"{type(error).__name__}: {reason}"
        result.samples.clear()
