"""Handle Ctrl-C, SIGTERM and SIGHUP between the steps of long work."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

DUPLICATE_SECONDS = 2.0
"""Signals within this time of the first are the same request, because launchers forward what the terminal sends."""
# Windows has no SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
ALWAYS_HANDLED = {signal.SIGINT, signal.SIGTERM}
"""Signals that are handled even if they were ignored, as shells let programs in the background ignore SIGINT."""


class StopRequest:
    """Context manager that records the first of `SIGNALS` in `signal`; a second one has its usual effect.

    A SIGHUP that is ignored stays ignored, as under nohup. Signals can only be handled in the main thread; in
    others this does nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._received_at = 0.0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number in ALWAYS_HANDLED or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

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
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
