"""Progress display of a run: live on a terminal, plain lines otherwise."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from querybox import terminal
from querybox.duration import format_duration
from querybox.training.checkpoint import Progress
from querybox.training.processes import is_main_process
from querybox.training.settings import TrainSettings

REFRESH_SECONDS = 0.25
LINE_SECONDS = 30.0
ESTIMATE_STEPS = 10
"""Number of steps after which the duration of the run is estimated."""


class Bar(RichProgress):
    """A progress bar with the numbers of the last step below."""

    numbers = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, then the numbers."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self.numbers, style="dim")


class Display:
    """Displays the progress of a run, at most a few times per second.

    Args:
        console: The console to print to; None to show nothing, as in all processes but the main one.
        settings: Training settings of the run.
        steps_per_epoch: Number of updates per epoch.
        done: Number of updates already made, in a resumed run.
    """

    def __init__(
        self, console: Console | None, settings: TrainSettings, *, steps_per_epoch: int, done: int = 0
    ) -> None:
        self.console = console
        self.epochs = settings.epochs
        self.max_time = settings.max_time
        self.total = settings.epochs * steps_per_epoch
        self.done = done
        self.timed_from: tuple[int, float] | None = None  # a step and its time: the first one takes longer
        self.announced = False
        self.shown_at = time.perf_counter()
        self.metrics = ""
        self.bar: Bar | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Bar(*columns, console=console, auto_refresh=False, expand=True)
            self.task = self.bar.add_task("first step", total=1.0, left="")
            self.bar.update(self.task, completed=done / self.total)

    def __enter__(self) -> Self:
        self.shown_at = time.perf_counter()
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, progress: Progress, losses: Mapping[str, float]) -> None:
        """Show the last update: its learning rate and its losses, those of the last layer by name."""
        now = time.perf_counter()
        self.timed_from = self.timed_from or (progress.step, now)
        left = self.seconds_left(progress, now)
        self.announce(progress, left)
        if self.console is None or now - self.shown_at < (REFRESH_SECONDS if self.bar else LINE_SECONDS):
            return
        self.shown_at = now
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items() if "." not in name
        )
        speed = progress.epoch_sums["images"] / progress.epoch_sums["seconds"]
        loss = f"loss {sum(losses.values()):.3f} ({parts})"
        numbers = f"{loss}  lr {progress.lr:.2g}  {speed:.1f} images/s{self.metrics}"
        where = self.describe(progress, left)
        remaining = "" if left is None else f"{format_duration(left)} left"
        if self.bar:
            self.bar.numbers = numbers
            self.show(progress, where, remaining)
        else:
            self.print_line("  ".join(filter(None, [where, numbers, remaining])))

    def evaluating(self, progress: Progress) -> None:
        """Show that an evaluation has begun."""
        self.show(progress, f"epoch {progress.epoch + 1}  evaluating", "")

    def epoch(self, progress: Progress, loss: float, metrics: Mapping[str, float]) -> None:
        """Show the mean loss and the metrics of an epoch if it was evaluated, or if nothing was printed for a while."""
        evaluated = ""
        if metrics:
            self.metrics = f"  AP {metrics['AP']:.3f} AP50 {metrics['AP50']:.3f}"
            best = "" if progress.best is None else f" (best AP {progress.best:.3f})"
            evaluated = self.metrics + best
        elif self.bar or time.perf_counter() - self.shown_at < LINE_SECONDS:
            return
        self.shown_at = time.perf_counter()
        spent = format_duration(progress.seconds)
        limited = self.is_limited(progress, self.seconds_left(progress, self.shown_at))
        epochs = "" if limited else f"/{self.epochs}"
        self.print_line(f"epoch {progress.epoch + 1}{epochs}  loss {loss:.3f}{evaluated}  after {spent}")

    def seconds_left(self, progress: Progress, now: float) -> float | None:
        """Estimate the remaining time at the time `now`, until the last epoch or the time limit; None if unknown."""
        limit = None if self.max_time is None else max(0.0, self.max_time - progress.seconds)
        step, then = self.timed_from or (progress.step, now)
        if progress.step == step:
            return limit
        left = (now - then) / (progress.step - step) * (self.total - progress.step)
        return left if limit is None else min(left, limit)

    def fraction(self, progress: Progress) -> float:
        """Return the fraction of the run that is done, 0-1: of its updates or of its time, whichever ends first."""
        steps = progress.step / self.total
        return steps if self.max_time is None else min(1.0, max(steps, progress.seconds / self.max_time))

    def describe(self, progress: Progress, left: float | None) -> str:
        """Return the position in the run and the best AP; the last epoch and step only if the run will reach them."""
        limited = self.is_limited(progress, left)
        epochs, steps = ("", "") if limited else (f"/{self.epochs}", f"/{self.total}")
        best = "" if progress.best is None else f"  best AP {progress.best:.3f}"
        return f"epoch {progress.epoch + 1}{epochs}  step {progress.step}{steps}{best}"

    def is_limited(self, progress: Progress, left: float | None) -> bool:
        """Return whether the time limit ends the run before its last epoch, given the remaining seconds."""
        return self.max_time is not None and left is not None and left >= self.max_time - progress.seconds

    def announce(self, progress: Progress, left: float | None) -> None:
        """Print once, after the first steps, how long the run will take, unless it is short or has a time limit."""
        if self.announced or progress.step - self.done < ESTIMATE_STEPS or left is None:
            return
        self.announced = True
        if self.max_time is None and left >= LINE_SECONDS:
            self.print_line(f"{self.total - progress.step} steps to go, about {format_duration(left)}")

    def show(self, progress: Progress, description: str, left: str) -> None:
        """Show a state in the bar, if there is one."""
        if self.bar:
            done = self.fraction(progress)
            self.bar.update(self.task, completed=done, description=description, left=left)
            self.bar.refresh()

    def print_line(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        print_lines(self.console, line)


class TolerantStream:
    """Writes to a stream and ignores its errors.

    A closed pipe, a terminal that is gone or a full disk that holds the log must not end a run.
    """

    def __init__(self, stream: Any) -> None:
        """Write to `stream`, any text stream; nowhere if it is None, as `sys.stderr` is in a process without one."""
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write `text` as far as possible."""
        if self.stream is not None:
            with suppress(OSError, ValueError):  # ValueError: the stream was closed
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream as far as possible."""
        if self.stream is not None:
            with suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of the stream."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()


def open_console() -> Console:
    """Return a console for stderr, whose errors are ignored."""
    return terminal.Console(file=cast("TextIO", TolerantStream(sys.stderr)))


def main_console() -> Console | None:
    """Return a console for stderr in the main process, None in the others, before the processes are connected."""
    return open_console() if is_main_process() else None


def print_lines(console: Console | None, *lines: str) -> None:
    """Print the lines that are not empty, unless `console` is None."""
    if console is not None:
        for line in filter(None, lines):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
