"""Progress display of a run: live on a terminal, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from querybox.training.checkpoint import Progress
from querybox.training.duration import format_duration
from querybox.training.settings import TrainSettings

REFRESH_SECONDS = 0.25
LINE_SECONDS = 30.0


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
        self.first_step = done
        self.started = time.perf_counter()
        self.shown_at = self.started
        self.metrics = ""
        self.bar: Bar | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[left]}"),
            )
            self.bar = Bar(*columns, console=console, auto_refresh=False, expand=True)
            self.task = self.bar.add_task("starting", total=self.total, completed=done, left="")

    def __enter__(self) -> Self:
        self.started = self.shown_at = time.perf_counter()
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, progress: Progress, losses: Mapping[str, float], lr: float) -> None:
        """Show the last update: its losses, those of the last layer by name, and the learning rate."""
        now = time.perf_counter()
        if self.console is None or now - self.shown_at < (REFRESH_SECONDS if self.bar else LINE_SECONDS):
            return
        self.shown_at = now
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items() if "." not in name
        )
        speed = progress.epoch_sums["images"] / progress.epoch_sums["seconds"]
        numbers = (
            f"loss {sum(losses.values()):.3f} ({parts})  lr {lr:.2g}  {speed:.1f} images/s{self.metrics}"
        )
        left = format_duration(self.seconds_left(progress, now - self.started))
        where = f"epoch {progress.epoch + 1}/{self.epochs}  step {progress.step}/{self.total}"
        if self.bar:
            self.bar.numbers = numbers
            self.bar.update(self.task, completed=progress.step, description=where, left=f"{left} left")
            self.bar.refresh()
        else:
            self.print_line(f"{where}  {numbers}  {left} left")

    def epoch(self, progress: Progress, loss: float, metrics: Mapping[str, float]) -> None:
        """Show the mean loss and the metrics of an epoch if it was evaluated, or if nothing was printed for a while."""
        if metrics:
            best = f" (best AP {progress.best:.3f})" if progress.best is not None else ""
            self.metrics = f"  AP {metrics['AP']:.3f} AP50 {metrics['AP50']:.3f}{best}"
        elif self.bar or time.perf_counter() - self.shown_at < LINE_SECONDS:
            return
        self.shown_at = time.perf_counter()
        shown = self.metrics if metrics else ""
        spent = format_duration(progress.seconds)
        self.print_line(f"epoch {progress.epoch + 1}/{self.epochs}  loss {loss:.3f}{shown}  after {spent}")

    def seconds_left(self, progress: Progress, spent: float) -> float:
        """Estimate the remaining time until the last epoch or the time limit, after `spent` seconds of this session."""
        left = spent / (progress.step - self.first_step) * (self.total - progress.step)
        return left if self.max_time is None else max(0.0, min(left, self.max_time - progress.seconds))

    def print_line(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
