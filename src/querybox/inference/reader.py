"""Reading of a live source in a thread of its own, which keeps only the newest frame."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from querybox.data.image import MAX_PIXELS
from querybox.inference.address import Address
from querybox.inference.video import pixel_ratio
from querybox.text import counted

if TYPE_CHECKING:
    from av import VideoFrame

logger = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds to wait for a connection, for data, and for a frame that can be decoded."""
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before the first attempt to connect again, which double with each attempt, and their maximum."""
MAX_ATTEMPTS = 10
"""Number of attempts to connect again, without a frame in between, after which the source is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A decoded frame."""

    number: int
    """Number of frames before it."""
    seconds: float
    """When it was decoded, by `time.monotonic`."""
    frame: VideoFrame
    pixel_ratio: Fraction
    """See `DecodedFrame.pixel_ratio`."""


class Reader(threading.Thread):
    """Decodes all frames of a live source and keeps the newest one until it is taken.

    The thread is a daemon: a program that ends does not wait for data that does not come.

    Attributes:
        received: Number of frames that were decoded without errors.
        damaged: Number of packets and frames with errors, which are skipped.
        connections: Number of times that the source was opened.
        problem: Why the source was given up, once the thread has ended; empty if it was closed.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(name=f"reader of {address.name}", daemon=True)
        self.address = address
        self.received = self.damaged = self.connections = 0
        self.problem = "its reader failed"
        self._newest: Received | None = None
        self._ended = False
        self._closing = threading.Event()
        self._changed = threading.Condition()

    def run(self) -> None:
        """Read until the source is closed or given up."""
        try:
            self.problem = self._read()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def close(self) -> None:
        """Let the thread end; it does so with the next packet, or after `TIMEOUT`."""
        self._closing.set()

    def take(self, wait: float) -> tuple[Received | None, bool]:
        """Return the newest frame, which is then no longer kept, and whether the thread has ended.

        Args:
            wait: Seconds to wait for a frame at most.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._newest is not None, wait)
            newest, self._newest = self._newest, None
            return newest, self._ended

    def _read(self) -> str:
        """Open the source again and again; return why it was given up, or an empty text if it was closed."""
        failures = 0
        while True:
            before = self.received
            reason = self._read_connection()
            if self._closing.is_set():
                return ""
            if not self.received:  # more likely a wrong address than an interruption
                return reason
            failures = 1 if self.received > before else failures + 1
            if failures > MAX_ATTEMPTS:
                return f"{reason}; gave up after {counted(MAX_ATTEMPTS, 'attempt')} to connect again"
            wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            logger.warning("%s: %s; connecting again in %.3g s", self.address.name, reason, wait)
            if self._closing.wait(wait):
                return ""

    def _read_connection(self) -> str:
        """Open the source and read it; return why it ended."""
        import av

        last = time.monotonic()
        try:
            with av.open(
                self.address.url,
                format=self.address.format,
                options=dict(self.address.options),
                timeout=(TIMEOUT, TIMEOUT),
            ) as container:
                self.connections += 1
                if not container.streams.video:
                    return "it has no video"
                video = container.streams.video[0]
                video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
                for packet in container.demux(video):
                    if self._closing.is_set():
                        return ""
                    try:
                        frames = packet.decode()
                    except av.FFmpegError:
                        self.damaged += 1
                        frames = []
                    for frame in frames:
                        last = self._keep(frame, pixel_ratio(video, frame)) or last
                    if time.monotonic() - last > TIMEOUT:
                        return f"no frame could be decoded for {TIMEOUT:g} s"
            return "the stream ended"  # noqa: TRY300 - after the source is closed
        except (av.FFmpegError, OSError) as error:
            # Their messages contain the whole address, with its password.
            if isinstance(error, av.error.ExitError):
                return f"no data for {TIMEOUT:g} s"
            return str(error.strerror)

    def _keep(self, frame: VideoFrame, ratio: Fraction) -> float | None:
        """Keep a frame as the newest one, and return when, by `time.monotonic`; None if it is damaged."""
        if frame.is_corrupt:
            self.damaged += 1
            return None
        seconds = time.monotonic()
        with self._changed:
            self._newest = Received(number=self.received, seconds=seconds, frame=frame, pixel_ratio=ratio)
            self.received += 1
            self._changed.notify_all()
        return seconds
