"""Times of frames: even where the header's rate is that of the frames, otherwise those of the file."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from squares import crossing, write
from streams import transport_stream

from querybox.inference.frame_times import FrameTimes
from querybox.inference.sources import read_video

UNEVEN = [0, 40, 80, 120, 160, 200, 1200, 1240, 4000]
"""Milliseconds."""
CODECS = {".avi": "mpeg4", ".mkv": "rawvideo", ".mov": "mpeg4", ".mp4": "mpeg4", ".ts": "mpeg2video"}


def times_of(video: Path) -> list[float | None]:
    """Return the times of all frames."""
    times = FrameTimes(video)
    return [times.next(frame.seconds) for frame in read_video(video)]


def uneven(folder: Path, start: int = 0) -> Path:
    """Write a video whose frames have the times `UNEVEN`."""
    times = [start + each for each in UNEVEN]
    return write(folder / "uneven.mkv", crossing(len(times)), rate=25, times=times)


@pytest.mark.parametrize("suffix", sorted(CODECS))
@pytest.mark.parametrize("rate", [25, 60, Fraction(30000, 1001)])
def test_a_constant_rate_is_that_of_the_header(tmp_path: Path, suffix: str, rate: int | Fraction) -> None:
    video = write(tmp_path / f"clip{suffix}", crossing(30), rate=rate, codec=CODECS[suffix])
    times = FrameTimes(video)
    assert times.even
    assert times.rate == rate
    assert times_of(video) == [None] * 30


@pytest.mark.parametrize("start", [0, 7000])
def test_a_variable_rate_has_the_times_of_the_file_from_the_first_frame(tmp_path: Path, start: int) -> None:
    video = uneven(tmp_path, start)
    times = FrameTimes(video)
    assert not times.even
    assert times.rate == 25
    assert times_of(video) == pytest.approx([each / 1000 for each in UNEVEN])


def test_the_rate_of_most_frames_is_not_the_average(tmp_path: Path) -> None:
    video = write(tmp_path / "clip.mp4", crossing(9), rate=25, codec="mpeg4", times=UNEVEN)
    assert FrameTimes(video).rate == 25
    assert times_of(video) == pytest.approx([each / 1000 for each in UNEVEN])


def test_a_rate_that_the_header_gets_wrong_is_that_of_the_frames(tmp_path: Path) -> None:
    video = write(tmp_path / "clip.mkv", crossing(10), rate=25, times=range(0, 1000, 100))
    assert FrameTimes(video).rate == 10
    assert times_of(video) == pytest.approx([number / 10 for number in range(10)])


def test_times_that_are_rounded_are_even(tmp_path: Path) -> None:
    times = [1000 * number // 30 for number in range(60)]
    video = write(tmp_path / "clip.mkv", crossing(60), rate=30, times=times)
    assert FrameTimes(video).even
    assert not FrameTimes(write(video, crossing(59), rate=30, times=times[:50] + times[51:])).even


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([2.0, None, 2.3, None], [0, 0.04, 0.3, 0.34]),
        ([None, None, 5.0, 5.1], [0, 0.04, 0.08, 0.18]),
        ([0.0, 0.0, 0.0, 0.5], [0, 0.04, 0.08, 0.5]),
        ([1.0, 1.5, 0.2, 1.52, 2.0], [0, 0.5, 0.54, 0.58, 1.0]),
        ([0.0, 1e9, 0.1, 1e9 + 1], [0, 0.04, 0.1, 0.14]),
        ([None] * 3, [0, 0.04, 0.08]),
    ],
)
def test_a_frame_without_a_later_time_follows_at_the_stated_rate(
    tmp_path: Path, given: list[float | None], expected: list[float]
) -> None:
    times = FrameTimes(uneven(tmp_path))
    assert [times.next(each) for each in given] == pytest.approx(expected)


def test_times_that_begin_again_are_even(tmp_path: Path) -> None:
    """As in a file of two recordings that were joined."""
    video = tmp_path / "joined.ts"
    video.write_bytes(transport_stream(islice(crossing(), 30)) + transport_stream(islice(crossing(), 20)))
    times = FrameTimes(video)
    assert times.even
    assert times.rate == 25
    assert times_of(video) == [None] * 50


def test_a_file_of_one_frame_is_even(tmp_path: Path) -> None:
    assert times_of(write(tmp_path / "clip.mkv", islice(crossing(), 1), times=[400])) == [None]


def test_frames_that_an_avi_repeats_have_their_time(tmp_path: Path) -> None:
    """Its empty packets are no frames."""
    times, unit = [0, 1, 2, 4, 5], Fraction(1, 25)
    video = write(tmp_path / "clip.avi", crossing(5), rate=25, codec="mpeg4", times=times, unit=unit)
    assert times_of(video) == pytest.approx([each / 25 for each in times])
