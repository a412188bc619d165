"""Videos of all containers: whole ones are read as a whole, and what is missing in others is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from squares import crossing, write

from querybox.errors import ImageError
from querybox.inference.sources import find_sources, read_frames
from querybox.inference.video import SUFFIXES, decode_video, lacks_index

FRAMES = 30
CODECS = {".flv": "flv", ".mpeg": "mpeg2video", ".mpg": "mpeg2video", ".webm": "libvpx", ".wmv": "wmv2"}
UNKNOWN_LENGTH = {".ts", ".m2ts", ".mts", ".mpeg", ".mpg", ".wmv"}
"""Formats that do not say how long they are: what is cut off between two frames is not missed."""


def write_video(path: Path, frames: int = FRAMES) -> Path:
    """Write noise, at 10 frames a second, with the index first where the format has one."""
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov", ".m4v", ".3gp") else {}
    codec = CODECS.get(path.suffix, "mpeg4")
    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg has no {codec}")
    random = np.random.default_rng(0)
    with av.open(path, "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=25 if codec == "mpeg2video" else 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def read(path: Path) -> tuple[int, str]:
    """Return how many frames are read, and the error after them."""
    errors: list[ImageError] = []
    number = sum(1 for _ in read_frames(find_sources(path), errors.append))
    return number, " ".join(map(str, errors))


UPRIGHT = {  # by the display matrix a b c d: x' = a x + c y, y' = b x + d y
    (0, 1, -1, 0): lambda pixels: np.rot90(pixels, -1),
    (-1, 0, 0, 1): lambda pixels: pixels[:, ::-1],  # mirrored, as by front cameras
    (1, 0, 0, -1): lambda pixels: pixels[::-1],
    (0, 1, 1, 0): lambda pixels: pixels.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", UPRIGHT)
def test_a_mirrored_video_is_not_upside_down(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:16, :16] = 200  # a corner
    pixels[16:, :16] = 100
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        a, b, c, d = (2**16 * each for each in matrix)
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    (frame,) = decode_video(tmp_path / "clip.mp4")
    expected = UPRIGHT[matrix](pixels)
    assert frame.pixels.shape == expected.shape
    assert abs(frame.pixels - expected.astype(float)).mean() < 10


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_whole_videos_are_whole_and_cut_ones_are_not(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    assert read(path) == (FRAMES, "")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    number, error = read(path)
    assert 0 < number < 0.7 * FRAMES
    if suffix in UNKNOWN_LENGTH and not error:
        return
    assert error.startswith(f"{path}: the video is cut off or damaged: ")
    assert f"only the {number} frames that can be decoded are used" in error
    if suffix == ".avi":
        assert f"ends after {number} of {FRAMES} frames" in error
    elif suffix not in UNKNOWN_LENGTH:
        assert "of 3.0 seconds" in error


@pytest.mark.parametrize("suffix", [".flv", ".mkv", ".mov", ".mp4", ".webm", ".wmv"])
def test_a_video_that_begins_late_is_whole(tmp_path: Path, suffix: str) -> None:
    times = range(5000, 6000, 40)
    path = write(
        tmp_path / f"clip{suffix}", crossing(25), rate=25, codec=CODECS.get(suffix, "mpeg4"), times=times
    )
    assert read(path) == (25, "")
    if suffix in (".flv", ".mkv", ".webm"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert "of 6.0 seconds" in read(path)[1] or suffix == ".flv"


def test_what_follows_a_damaged_part_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    path.write_bytes(content)
    number, error = read(path)
    assert FRAMES - 10 < number < FRAMES
    assert "damaged" in error.partition("cut off or damaged: ")[2]


def test_audio_that_lasts_longer_than_the_video_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"  # states the length of the whole, not of the video
    with av.open(path, "w") as container:
        video: Any = container.add_stream("mpeg4", rate=10)
        audio: Any = container.add_stream("aac", rate=8000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode())
        for number in range(30):
            samples = np.zeros((1, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * number
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    assert read(path) == (10, "")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".3gp"])
def test_a_recording_without_its_index_is_told(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}")
    content = path.read_bytes()
    assert not lacks_index(path)
    begin, end = content.index(b"moov") - 4, content.index(b"mdat") - 4
    path.write_bytes(content[:begin] + content[end:])
    with pytest.raises(ImageError, match=r"has no index \(moov atom\).* interrupted"):
        next(decode_video(path))


@pytest.mark.parametrize("content", [b"", b"no video at all", b"\0\0\0\x08moov", b"\0\0\0\1free", bytes(100)])
def test_other_files_do_not_lack_an_index(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert lacks_index(path) == content.endswith(b"free")
