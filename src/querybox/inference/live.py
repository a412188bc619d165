"""Live sources: cameras and network streams, of which only the newest frame is processed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import UInt8

from querybox.arguments import require_consent, require_number
from querybox.errors import ConfigError, ImageError
from querybox.inference.address import HTTP_FORMATS, Address, find_address
from querybox.inference.reader import Reader, Received
from querybox.inference.video import upright
from querybox.text import counted

POLL = 0.1
"""Interval in seconds at which the limits and `LiveStream.stopped` are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFrame:
    """A frame of a live source."""

    number: int
    """Number of frames that were received before it. Those that are missing were dropped."""
    time: float
    """When it was received, in seconds since 1970-01-01 00:00 UTC."""
    pixels: UInt8[np.ndarray, "h w 3"]
    """RGB."""
    pixel_ratio: Fraction
    """Width of a pixel divided by its height."""


class LiveStream:
    """The frames of a camera or a network stream, one at a time.

        with qb.LiveStream("rtsp://camera/1", allow_network=True, duration=60) as stream:
            for found in qb.predict(detector, stream):
                print(found.time, found.names)

    A thread reads and decodes the source, and keeps only the newest frame: if processing is slower than the source,
    frames are dropped, and memory and delay do not grow. A connection that ends, or that yields no frame for 10 s, is
    opened again after 1, 2, 4 ... 30 s, until ten attempts in succession have yielded none.

    Attributes:
        name: The address without user name, password and query.
        frame: The frame that was processed last; None before the first.
        processed: Number of frames that were processed.
        stopped: Called several times a second; the frames end when it returns True. By default it never does.
    """

    def __init__(
        self,
        source: str,
        *,
        allow_network: bool = False,
        max_frames: int | None = None,
        duration: float | None = None,
    ) -> None:
        """Check the address; nothing is opened before the context is entered.

        Args:
            source: Index of a camera, such as ``"0"``; the name of its device on Linux, such as ``"/dev/video0"``; or
                an address that begins with ``rtsp://``, ``http://`` or ``https://``.
            allow_network: Required for addresses.
            max_frames: Number of frames to process; None for no limit.
            duration: Seconds to process frames for, from when the first is asked for; None for no limit.

        Raises:
            ConfigError: The address is malformed, not of a live source, or on the network, without `allow_network`; or
                another argument is out of its range.
        """
        self._address = require_address(source, allow_network=allow_network)
        if max_frames is not None:
            require_number("LiveStream", "max_frames", max_frames, 1, whole=True)
        if duration is not None:
            require_number("LiveStream", "duration", duration, 0)
        self.name = self._address.name
        self.frame: LiveFrame | None = None
        self.processed = 0
        self.stopped: Callable[[], bool] = lambda: False
        self._max_frames = math.inf if max_frames is None else max_frames
        self._duration = math.inf if duration is None else duration
        self._reader: Reader | None = None
        self._start: float | None = None
        self._epoch = 0.0

    def __enter__(self) -> Self:
        """Open the source and begin to read it."""
        self._epoch = time.time() - time.monotonic()  # read once: the clock may be set back
        self._reader = Reader(self._address)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened().close()

    def __iter__(self) -> Iterator[LiveFrame]:
        """Yield the newest frame, once the last one has been processed.

        Raises:
            ImageError: The source cannot be opened, was given up, or yielded no frame for the whole duration.
        """
        reader = self._opened()
        if self._start is None:  # not when it was opened: the model may have been prepared since
            self._start = time.monotonic()
        while not self._done(time.monotonic() - self._start):
            received, ended = reader.take(POLL)
            if received is not None:
                self.frame = self._as_frame(received)
                self.processed += 1
                yield self.frame
            elif ended:
                raise ImageError(f"{self.name}: {self._given_up()}")
        if self._duration and not reader.received and not self.stopped():
            raise ImageError(
                f"{self.name}: no frame was received in {self._duration:g} s; check the camera and the network, or set "
                "a longer duration"
            )

    def __repr__(self) -> str:
        return f"LiveStream({self.name!r})"

    def summary(self) -> str:
        """Return the numbers of frames that were processed and dropped, and of connections and damaged frames."""
        reader = self._opened()
        dropped = reader.received - self.processed
        return (
            f"{self.processed:,} of {counted(reader.received, 'frame')} were processed, {dropped:,} dropped because "
            f"newer ones had arrived, {reader.damaged:,} damaged; opened {counted(reader.connections, 'time')}"
        )

    def _given_up(self) -> str:
        reader = self._opened()
        if reader.received:
            return f"the stream was given up ({reader.problem}); check the camera and the network"
        if not self._address.is_network:
            return (
                f"cannot be opened as a camera ({reader.problem}): check that it is connected, that no other program "
                "uses it, and its permissions"
            )
        return (
            f"cannot be opened as a stream ({reader.problem}); expected one in one of the formats {HTTP_FORMATS}, "
            "without a redirect: check its address"
        )

    def _done(self, seconds: float) -> bool:
        return self.stopped() or seconds >= self._duration or self.processed >= self._max_frames

    def _as_frame(self, received: Received) -> LiveFrame:
        return LiveFrame(
            number=received.number,
            time=self._epoch + received.seconds,
            pixels=upright(received.frame),
            pixel_ratio=received.pixel_ratio,
        )

    def _opened(self) -> Reader:
        if self._reader is None:
            raise ConfigError(f"{self.name}: is not open; use it in a 'with' statement")
        return self._reader


def require_address(source: str, *, allow_network: bool) -> Address:
    """Return the address of a live source.

    Raises:
        ConfigError: It is not that of a live source, or it is on the network, without `allow_network`.
    """
    address = find_address(source)
    if address is None:
        raise ConfigError(
            "LiveStream got no live source; expected a camera such as '0', or an address such as 'rtsp://HOST/PATH'"
        )
    if address.is_network:
        require_consent(address.name, allow_network=allow_network)
    return address
