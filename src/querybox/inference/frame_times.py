"""Times of the frames of a video: even by the rate that its header states, or, at a variable rate, their own."""

from __future__ import annotations

from array import array
from fractions import Fraction
from pathlib import Path
from statistics import median_low

import numpy as np
from jaxtyping import Int64

from querybox.inference.video import Progress, open_video, read_packets

ROUNDING = 0.001
"""Seconds to which programs round times, whatever the unit of the file."""
DRIFT = 1e-4
"""Relative error of rates in headers, such as 29.97 for 30000/1001."""
MAX_STEP = 86_400.0
"""Seconds between two frames from which on a time is considered damaged."""


class FrameTimes:
    """The times of the frames of one video, which are passed one after the other.

    Attributes:
        even: Whether the frames follow each other evenly at the rate that the header states, up to rounding; or no
            other times are known, because the file lacks some of them, or they begin again in its middle.
        rate: Frames a second: the stated rate, or that of most frames if they are not even.
    """

    def __init__(self, path: Path) -> None:
        """Read the times of all packets, which decodes none.

        Raises:
            ImageError: The file is not a video.
        """
        ticks, tick, self._stated = packet_times(path)
        self.rate = self._stated
        self.even = is_even(ticks, tick, self._stated)
        if not self.even:
            steps = np.diff(ticks)
            self.rate = 1 / (median_low(steps[steps > 0].tolist()) * tick)
        self._start: float | None = None
        self._last: float | None = None

    def next(self, time: float | None) -> float | None:
        """Return the time of the next frame in seconds from the first one; None if the frames are even.

        Args:
            time: Presentation time of the frame by the file, in seconds; None if it has none. A frame without one, or
                with one that is not after that of the frame before, follows that frame at the stated rate.
        """
        if self.even:
            return None
        expected = 0.0 if self._last is None else self._last + float(1 / self._stated)
        if self._start is None and time is not None:
            self._start = time - expected
        seconds = expected
        if time is not None and self._start is not None and self._last is not None:
            own = time - self._start
            seconds = own if 0 < own - self._last < MAX_STEP else expected
        self._last = seconds
        return seconds


def packet_times(path: Path) -> tuple[Int64[np.ndarray, " N"], Fraction, Fraction]:
    """Return the presentation times of all frames in order, their unit in seconds, and the stated frames a second.

    There are no times if the file lacks some, or if they go back in the order of decoding, as in joined recordings. The
    rate is 25 if the header does not say.
    """
    times, decoded, count = array("q"), array("q"), 0  # 8 bytes each: there are millions in a day
    with open_video(path) as (container, stream):
        rate = stream.average_rate or Fraction(25)
        for packet in read_packets(container, Progress()):
            if packet.stream_index != stream.index or not packet.size:
                continue
            count += 1
            if packet.pts is not None:
                times.append(packet.pts)
            if packet.dts is not None:
                decoded.append(packet.dts)
        tick = stream.time_base or Fraction(0)
    if len(times) < count:
        times = decoded
    if len(times) < count or (np.diff(decoded) < 0).any():
        times = array("q")
    return np.sort(times).astype(np.int64), tick, rate


def is_even(ticks: Int64[np.ndarray, " N"], tick: Fraction, rate: Fraction) -> bool:
    """Return whether times, in units of `tick`, are those of `rate` frames a second, or there are none."""
    if not len(ticks) or ticks[0] == ticks[-1]:
        return True
    step, unit = float(1 / rate), float(tick)
    even = np.arange(len(ticks)) * step
    tolerance = np.minimum(ROUNDING + unit + DRIFT * even, step / 2)
    return bool((np.abs((ticks - ticks[0]) * unit - even) <= tolerance).all())
