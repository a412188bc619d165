"""Ctrl-C and SIGTERM as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

SAME_SECONDS = 2.0
"""Signals that follow the first one so soon are the same request: a launcher hands on what the terminal sent to all."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM is noted in `signal`; a later one acts as it always does.

    Signals can only be caught in the main thread; elsewhere this notes nothing.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._noted_at = 0.0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def reraise(self) -> None:
        """End the program as the noted signal would have; as SIGTERM, where it came to another process of the training.

        Raises:
            KeyboardInterrupt: It was Ctrl-C.
            SystemExit: It was SIGTERM; the exit code is 143, as shells expect.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._noted_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._noted_at > SAME_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
