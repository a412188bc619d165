"""Drawings of images and videos."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from squares import SquareEngine, crossing, write

from querybox.errors import ConfigError, DiskFullError, ImageError
from querybox.inference.detections import Detections
from querybox.inference.drawings import draw_files, draw_video, drawing_paths
from querybox.inference.file_names import file_names
from querybox.inference.sources import read_frames
from querybox.inference.video_file import video_file
from querybox.structures import Category


def found(source: str, count: int = 1, size: tuple[int, int] = (50, 100)) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 10.0, 60.0, 40.0]])[:count],
        scores=torch.tensor([0.75])[:count],
        labels=torch.tensor([0])[:count],
        categories=(Category(id=1, name="cat"),),
        size=size,
        source=source,
    )


def picture(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (100, 50), (90, 90, 90)).save(path)
    return path


def test_a_drawing_never_overwrites_a_source(tmp_path: Path) -> None:
    sources = [picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg")]
    with pytest.raises(ConfigError, match=r"a\.jpg: the drawing would overwrite a source"):
        drawing_paths(file_names(sources), tmp_path)
    with pytest.raises(
        ConfigError, match=r"b\.jpg: the drawing would overwrite a source"
    ):  # where case is ignored
        drawing_paths(file_names([tmp_path / "b.JPG"]), tmp_path)


def test_draws_pictures(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    draw_files([source], [tmp_path / "drawn.jpg"], iter([found(str(source))]))
    drawn = np.asarray(Image.open(tmp_path / "drawn.jpg")).astype(int)
    assert drawn.shape == (50, 100, 3)
    assert np.abs(drawn[10:40, 10:60] - 90).max() > 50
    assert np.abs(drawn[:, 90:] - 90).max() < 20


def test_a_picture_without_space_is_told_and_not_left_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = picture(tmp_path / "a.png")

    def fill(_: Image.Image, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", fill)
    with pytest.raises(DiskFullError, match=r"drawn\.jpg: cannot be written \(No space left on device"):
        draw_files([source], [tmp_path / "drawn.jpg"], iter([found(str(source))]))
    assert list(tmp_path.iterdir()) == [source]


def test_what_is_gone_when_it_is_drawn_does_not_end_the_others(tmp_path: Path) -> None:
    """A folder may change while it is predicted; the results of all files are in the tables."""
    first, last = picture(tmp_path / "a.png"), picture(tmp_path / "c.png")
    gone, video = tmp_path / "b.png", tmp_path / "v.mp4"
    sources = [first, gone, video, last]
    paths = [tmp_path / f"{source.stem}.jpg" for source in sources]
    names = [first, gone, f"{video}#0", f"{video}#1", last]
    errors: list[ImageError] = []
    draw_files(sources, paths, (found(str(name)) for name in names), errors.append)
    assert [path.exists() for path in paths] == [True, False, False, True]
    assert [str(error).partition(":")[0] for error in errors] == [str(gone), str(video)]
    assert str(errors[1]) == f"{video}: no such video file"
    with pytest.raises(ImageError, match=r"b\.png: no such image file"):
        draw_files(sources, paths, (found(str(name)) for name in names))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no links without privileges")
def test_the_targets_of_links_in_the_output_folder_are_not_overwritten(tmp_path: Path) -> None:
    source = picture(tmp_path / "images" / "a.png")
    (tmp_path / "target").write_text("old")
    (tmp_path / "a.jpg").symlink_to("target")
    (tmp_path / "hard.jpg").hardlink_to(tmp_path / "target")
    for name in ("a.jpg", "hard.jpg"):
        draw_files([source], [tmp_path / name], iter([found(str(source))]))
        with Image.open(tmp_path / name) as drawn:
            assert drawn.size == (100, 50)
    assert (tmp_path / "target").read_text() == "old"


def test_draws_every_frame_of_a_video(tmp_path: Path) -> None:
    import av

    source = tmp_path / "clip.avi"
    with av.open(source, "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 101, 51, "yuvj420p"
        for _ in range(4):
            gray = np.full((51, 101, 3), 90, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    after = picture(tmp_path / "z.png")
    results = [found(f"{source}#{number}", count=number % 2, size=(51, 101)) for number in range(4)]
    paths = [tmp_path / "out.mp4", tmp_path / "out.jpg"]
    draw_files([source, after], paths, iter([*results, found(str(after))]))
    frames = [frame.pixels.int() for frame in read_frames([paths[0]])]
    assert [tuple(frame.shape) for frame in frames] == [(3, 50, 100)] * 4
    marked = [bool((frame[:, 10:40, 10:60] - 90).abs().max() > 50) for frame in frames]
    assert marked == [False, True, False, True]
    assert (np.abs(np.asarray(Image.open(paths[1])).astype(int) - 90) > 50).any()
    with av.open(paths[0]) as container:
        assert container.streams.video[0].average_rate == 5


@pytest.mark.parametrize(("rotation", "expected"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_the_pixels_of_a_video_keep_their_shape(tmp_path: Path, rotation: int, expected: Fraction) -> None:
    """As those of AVCHD, which are wider than high."""
    import av

    source, path = tmp_path / "clip.mp4", tmp_path / "drawn.mp4"
    with av.open(source, "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(rotation)
        container.mux(stream.encode(av.VideoFrame(48, 32, "yuv420p")))
        container.mux(stream.encode())
    size = (48, 32) if rotation else (32, 48)
    draw_files([source], [path], iter([found(f"{source}#0", size=size)]))
    with av.open(path) as drawn:
        (video,) = drawn.streams.video
        assert (video.height, video.width) == size
        assert video.sample_aspect_ratio == expected


def test_a_live_video_can_be_played_while_it_is_written(tmp_path: Path) -> None:
    """And so after its process was killed: the encoder holds the last frames, and the others are there."""
    import av

    def times() -> list[float | None]:
        with av.open(path) as container:
            return [frame.time for frame in container.decode(video=0)]

    path = tmp_path / "live.mp4"
    expected = [number / 10 for number in range(100)]
    with video_file(path, Fraction(30), live=True) as file:
        for time in expected:
            file.add(Image.new("RGB", (32, 16)), 1e9 + time)
        written = times()
        assert len(written) > 20
        assert written[:20] == pytest.approx(expected[:20], abs=1e-3)
    assert times() == pytest.approx(expected, abs=1e-3)
    assert list(tmp_path.iterdir()) == [path]
    assert (
        b"moof" not in path.read_bytes().partition(b"mdat")[0]
    )  # an ordinary file, in which players can seek


def drawn_times(source: Path) -> tuple[Fraction | None, list[float | None]]:
    """Return the frame rate of the drawing of a video, and the times of its frames."""
    import av

    path = source.with_name("drawn.mp4")
    draw_files([source], [path], iter(SquareEngine().predict(source)))
    with av.open(path) as container:
        return container.streams.video[0].average_rate, [frame.time for frame in container.decode(video=0)]


@pytest.mark.parametrize("start", [0, 5000])
def test_a_video_with_a_variable_frame_rate_keeps_its_times(tmp_path: Path, start: int) -> None:
    """Counted from the first frame."""
    times = [0, 40, 80, 95, 110, 3110, 3150, 9150]
    source = write(tmp_path / "clip.mkv", crossing(8), rate=25, times=[start + each for each in times])
    assert drawn_times(source)[1] == pytest.approx([each / 1000 for each in times], abs=1e-4)


@pytest.mark.parametrize("rate", [25, 60, Fraction(30000, 1001)])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_video_with_a_constant_frame_rate_keeps_it(
    tmp_path: Path, suffix: str, rate: int | Fraction
) -> None:
    codec = "rawvideo" if suffix == ".mkv" else "mpeg4"
    source = write(tmp_path / f"clip{suffix}", crossing(20), rate=rate, codec=codec)
    stated, times = drawn_times(source)
    assert stated == rate
    assert times == pytest.approx([number / float(rate) for number in range(20)], abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (63, 47)])
def test_a_video_of_any_size_is_drawn_and_appears_as_a_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    """Sizes of codecs are even."""
    import av

    width, height = size
    source, path = tmp_path / "clip.mkv", tmp_path / "drawn.mp4"
    with av.open(source, "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(width, height, "yuv444p")))
        container.mux(stream.encode())

    def results(number: int) -> Iterator[Detections]:
        for frame in range(number):
            assert not path.exists()
            yield found(f"{source}#{frame}", size=(height, width))
        if number < 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_video(source, path, results(2))
    assert sorted(tmp_path.iterdir()) == [source]
    draw_video(source, path, results(3))
    with av.open(path) as drawn:
        assert len(list(drawn.decode(video=0))) == 3
