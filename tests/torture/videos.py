"""Videos that are cut, lack their index, have another name, or promise more frames than they hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from querybox.data.image import read_image
from querybox.errors import ImageError
from querybox.inference.sources import read_frames
from torture.case import Case, require

FRAMES, RATE = 30, 10
SIZE = 64, 48
MISSING = 6
"""Frames that may be missing unreported: half a second, by which headers are wrong, and the one that is cut."""
CONTAINERS = (".mp4", ".mov", ".mkv", ".avi")
"""Those that state their length and hold MPEG-4."""
OTHERS = (".mkv", ".avi", ".ts", ".webm", ".mp4")
"""Suffixes that a video gets in place of its own."""


def write_video(path: Path) -> bytes:
    """Write noise, with the index first where there is one, and return the content of the file."""
    import av

    random = np.random.default_rng(0)
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(path, "w", options=options) as container:
        stream: Any = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for _ in range(FRAMES):
            pixels = random.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def read(path: Path) -> tuple[int, str]:
    """Return the number of frames that are read, and what is reported."""
    errors: list[ImageError] = []
    count = sum(frame.pixels.shape == (3, SIZE[1], SIZE[0]) for frame in read_frames([path], errors.append))
    return count, " ".join(map(str, errors))


def cut(folder: Path, long: bool) -> str:
    """Cut videos off at every hundredth of their length, or at three places."""
    places: Sequence[float] = [part / 100 for part in range(1, 100)] if long else (0.01, 0.4, 0.8)
    suffixes = CONTAINERS if long else (".mp4", ".avi")
    reported = 0
    for suffix in suffixes:
        path = folder / f"clip{suffix}"
        content = write_video(path)
        require(read(path) == (FRAMES, ""), f"the whole {suffix}: {read(path)}")
        for place in places:
            path.write_bytes(content[: int(place * len(content))])
            count, message = read(path)
            whole = FRAMES - MISSING <= count <= FRAMES
            require(
                count <= FRAMES and bool(message or whole),
                f"{suffix} cut at {place}: {count} frames, unreported",
            )
            reported += bool(message)
    return f"{reported} of {len(suffixes) * len(places)} cut videos reported, the others lack at most {MISSING} frames"


def lose_index(folder: Path, long: bool) -> str:
    """Take the index away, as an interrupted recording leaves it."""
    for suffix in (".mp4", ".mov"):
        path = folder / f"clip{suffix}"
        content = write_video(path)
        begin, end = content.index(b"moov") - 4, content.index(b"mdat") - 4
        path.write_bytes(content[:begin] + content[end:])
        count, message = read(path)
        require(count == 0 and "has no index (moov atom)" in message, f"{suffix}: {count} frames, {message}")
    return "MP4 and QuickTime: reported by name"


def rename(folder: Path, long: bool) -> str:
    """Read videos under the suffixes of others, and of images."""
    path = folder / "clip.mp4"
    content = write_video(path)
    for suffix in OTHERS:
        other = folder / f"other{suffix}"
        other.write_bytes(content)
        require(read(other) == (FRAMES, ""), f"MP4 named {suffix}: {read(other)}")
    (folder / "clip.jpg").write_bytes(content)
    try:
        read_image(folder / "clip.jpg")
    except ImageError:
        return f"{len(OTHERS)} other suffixes read as what they hold; refused as an image"
    raise AssertionError("a video was read as an image")


def promise(folder: Path, long: bool) -> str:
    """State more frames in the headers of an AVI than it holds."""
    path = folder / "clip.avi"
    content = write_video(path)
    promised = (FRAMES + 2, 2 * FRAMES, 10**6, 2**31 - 1)
    for number in promised:
        changed = bytearray(content)
        struct.pack_into("<I", changed, content.index(b"avih") + 8 + 16, number)
        struct.pack_into("<I", changed, content.index(b"strh") + 8 + 32, number)
        path.write_bytes(changed)
        count, message = read(path)
        reported = f"ends after {FRAMES} of {number} frames" in message
        require(
            count == FRAMES and (reported or number < FRAMES + MISSING),
            f"{number} promised: {count}, {message}",
        )
    return f"{FRAMES} frames read of up to {promised[-1]:,} promised; reported"


CASES = [
    Case(name="cut videos", required="read as far as possible; reported", run=cut),
    Case(name="videos without their index", required="reported", run=lose_index),
    Case(name="videos with another suffix", required="read by content, and never as images", run=rename),
    Case(
        name="more frames promised than held", required="those that are there are read; reported", run=promise
    ),
]
