"""Handle Ctrl-C, SIGTERM and SIGHUP between the steps of long work."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Self

DUPLICATE_SECONDS = 2.0
"""Signals within this time of the first are the same request, because launchers forward what the terminal sends."""
# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ALWAYS_HANDLED = {signal.SIGINT, signal.SIGTERM}
"""Signals that are handled even if they were ignored, as shells let programs in the background ignore SIGINT."""


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Context manager in which `handler` handles signals. In other threads than the main one it does nothing."""
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in former.items():
            signal.signal(number, previous)


def is_ignored(number: int) -> bool:
    """Return whether a signal is ignored, as SIGHUP under nohup."""
    return signal.getsignal(number) is signal.SIG_IGN


def exiting_on_signals() -> AbstractContextManager[None]:
    """Context manager in which SIGTERM and SIGHUP exit as Python does, with its cleanup, unless they are ignored.

    Raises:
        SystemExit: There was a signal; the exit code is 128 plus its number, as shells expect.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [number for number in SIGNALS if number is not signal.SIGINT and not is_ignored(number)]
    return handling(numbers, leave)


class StopRequest:
    """Context manager that records the first of `SIGNALS` in `signal`; a second one has its usual effect.

    A SIGHUP that is ignored stays ignored, as under nohup. Signals can only be handled in the main thread; in
    others this does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._received_at = 0.0
        self._handling = ExitStack()

    def __enter__(self) -> Self:
        numbers = [number for number in SIGNALS if number in ALWAYS_HANDLED or not is_ignored(number)]
        self._handling.enter_context(handling(numbers, self._record))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handling.close()

    def reraise(self) -> None:
        """Exit as the recorded signal would have; as SIGTERM if another process of the run received it.

        Raises:
            KeyboardInterrupt: The signal was Ctrl-C.
            SystemExit: The signal was another one; the exit code is 128 plus its number, as shells expect.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._received_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._received_at > DUPLICATE_SECONDS:
            self._handling.close()
            signal.raise_signal(number)
