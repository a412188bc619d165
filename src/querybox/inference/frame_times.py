"""Times of the frames of a video: even by the rate that its header states, or, at a variable rate, their own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median_low

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
            steps = [after - before for before, after in pairwise(ticks) if after > before]
            self.rate = 1 / (median_low(steps) * tick)
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


def packet_times(path: Path) -> tuple[list[int], Fraction, Fraction]:
    """Return the presentation times of all frames in order, their unit in seconds, and the stated frames a second.

    There are no times if the file lacks some, or if they go back in the order of decoding, as in joined recordings. The
    rate is 25 if the header does not say.
    """
    with open_video(path) as (container, stream):
        rate = stream.average_rate or Fraction(25)
        packets = [
            (packet.pts, packet.dts)
            for packet in read_packets(container, Progress())
            if packet.stream_index == stream.index and packet.size
        ]
        tick = stream.time_base or Fraction(0)
    shown = [pts for pts, _ in packets if pts is not None]
    decoded = [dts for _, dts in packets if dts is not None]
    if any(after < before for before, after in pairwise(decoded)):
        return [], tick, rate
    if len(shown) < len(packets):
        shown = decoded
    return (sorted(shown) if len(shown) == len(packets) else []), tick, rate


def is_even(ticks: Sequence[int], tick: Fraction, rate: Fraction) -> bool:
    """Return whether times, in units of `tick`, are those of `rate` frames a second, or there are none."""
    if not ticks or ticks[0] == ticks[-1]:
        return True
    step, unit = float(1 / rate), float(tick)
    for number, time in enumerate(ticks):
        even = number * step
        tolerance = min(ROUNDING + unit + DRIFT * even, step / 2)
        if abs((time - ticks[0]) * unit - even) > tolerance:
            return False
    return True
