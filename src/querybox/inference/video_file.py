"""Writing of videos, whose pictures may have times and sizes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageOps

from querybox.files import atomic, growing
from querybox.inference.video import video_address

if TYPE_CHECKING:
    from av import VideoStream
    from av.container import OutputContainer

TICK = Fraction(1, 1000)
"""Unit of the times of pictures in seconds."""


GROWING = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}
"""Options of FFmpeg for a file that can be played while it is written: in fragments of 1,000,000 us until its end."""


@contextmanager
def video_file(path: Path, rate: Fraction, *, live: bool = False) -> Iterator[VideoFile]:
    """Write a video; it appears on exit, that of a live source at once.

    Args:
        path: The file.
        rate: Pictures a second, unless they have times.
        live: Write the file so that what is in it can be played if this process is killed, or the disk is full.
    """
    import av

    with (
        growing(path) if live else atomic(path) as target,
        av.open(video_address(target), "w", format="mp4", options=GROWING if live else {}) as container,
    ):
        file = VideoFile(container, rate)
        if live:
            file.stream.codec_context.max_b_frames = 0  # with which times in fragments would not be exact
        yield file
        container.mux(file.stream.encode())


class VideoFile:
    """Encodes pictures as the frames of a video.

    All get the size of the first one, rounded down to even numbers as codecs require; others are fitted into it.
    """

    def __init__(self, container: OutputContainer, rate: Fraction) -> None:
        import av

        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self.stream = cast("VideoStream", container.add_stream(codec, rate=rate))
        self.stream.pix_fmt = "yuv420p"
        self._container = container
        self._size: tuple[int, int] | None = None
        self._start, self._last = 0.0, -1

    def add(
        self, picture: Image.Image, seconds: float | None = None, pixel_ratio: Fraction = Fraction(1)
    ) -> None:
        """Add a picture, which is shown from the time `seconds` on, counted from that of the first one.

        All pixels have the `pixel_ratio` of the first picture; see `DecodedFrame.pixel_ratio`.
        """
        import av

        if self._size is None:
            self._size, self._start = picture.size, seconds or 0.0
            self.stream.width, self.stream.height = (max(2, side // 2 * 2) for side in picture.size)
            self.stream.codec_context.sample_aspect_ratio = pixel_ratio
            if seconds is not None:
                self.stream.codec_context.time_base = TICK
        if picture.size != self._size:
            picture = ImageOps.pad(picture, self._size)
        even = np.asarray(picture)[: self.stream.height, : self.stream.width]
        frame = av.VideoFrame.from_ndarray(even, format="rgb24")
        if seconds is not None:
            self._last = max(self._last + 1, round((seconds - self._start) / TICK))
            frame.pts, frame.time_base = self._last, TICK
        self._container.mux(self.stream.encode(frame))
