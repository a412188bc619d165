from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from querybox.errors import DataError, ImageError
from querybox.inference.sources import Pixels, find_distinct_files, find_sources, read_frames
from querybox.text import natural_key


def picture(path: Path, size: tuple[int, int] = (8, 6), colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def video(path: Path, frames: int = 5, rotation: int = 0) -> Path:
    """Write a 32 x 16 video whose frame n is gray of 20 n, its left half brighter."""
    import av

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            pixels = np.full((16, 32, 3), 20 * number, dtype=np.uint8)
            pixels[:, :16] += 100
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_folder_in_natural_order_names_what_it_leaves_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a2.jpg", "a10.PNG", "a10b.webp", "b1.jpg"]
    for name in random.Random(0).sample(names, len(names)):
        picture(tmp_path / name)
    picture(tmp_path / "inside" / "c.jpg")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "labels.xml").touch()
    for name in ("._a2.jpg", ".DS_Store"):  # as macOS writes them
        (tmp_path / name).touch()
    with caplog.at_level(logging.WARNING):
        assert find_sources(tmp_path) == [tmp_path / name for name in names]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: skipped 2 files that are not images: labels.xml, notes.txt"
    ]


def test_natural_order() -> None:
    names = ["2.jpg", "10.jpg", "a.jpg", "a1b2.jpg", "a1b10.jpg", "a01.jpg"]
    assert sorted(map(Path, reversed(names)), key=natural_key)[:2] == [Path("2.jpg"), Path("10.jpg")]
    assert natural_key(Path("a1b2.jpg")) < natural_key(Path("a1b10.jpg"))


def test_glob_reaches_folders_within(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "x" / "1.jpg"), picture(tmp_path / "x" / "y" / "2.jpg")
    assert find_sources(f"{tmp_path}/**/*.jpg") == [first, second]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/images/c.jpg"]),
        ("x/**/*.jpg", ["x/b.jpg", "x/up/a.jpg", "x/y/images/c.jpg"]),
        ("**/images/*", ["x/y/images/c.jpg"]),
        ("**/y/**/?.jpg", ["x/y/images/c.jpg"]),
        ("*/**/[bc].jpg", ["x/b.jpg", "x/y/images/c.jpg"]),
        ("x/**", ["x/b.jpg", "x/up/a.jpg", "x/y/images/c.jpg"]),
        ("*/*.jpg", ["x/b.jpg"]),
    ],
)
def test_a_glob_lists_no_folder_twice(pattern: str, expected: list[str], tmp_path: Path) -> None:
    """Links to a folder above, of which /proc has one for each process, have no end."""
    for name in ("a.jpg", "x/b.jpg", "x/y/images/c.jpg", ".hidden/d.jpg"):
        picture(tmp_path / name)
    (tmp_path / "x" / "up").symlink_to(tmp_path)
    assert find_sources(f"{tmp_path}/{pattern}") == [tmp_path / name for name in expected]


def test_brackets_in_a_file_name_are_no_pattern(tmp_path: Path) -> None:
    path = picture(tmp_path / "a[1].jpg")
    assert find_sources(str(path)) == [path]


def test_a_list_may_mix_everything(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.jpg")
    array = np.zeros((4, 5, 3), np.uint8)
    assert find_sources([tmp_path, array, str(path)]) == [path, array, path]


def test_distinct_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever path; links to files are files of their own, links to folders are not."""
    monkeypatch.chdir(tmp_path)
    first, second = picture(tmp_path / "x" / "a.jpg"), picture(tmp_path / "x" / "b.jpg")
    (tmp_path / "link.jpg").symlink_to(first)
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert find_distinct_files([first, "link.jpg"]) == [first, Path("link.jpg")]
    assert not caplog.messages
    assert find_distinct_files(["x/b.jpg", tmp_path / "x", "y/*.jpg", "x/../x/a.jpg"]) == [
        Path("x/b.jpg"),
        first,
    ]
    assert caplog.messages == [
        f"files that are named more than once are used once: {Path('x/b.jpg')}, {first}"
    ]
    assert find_sources([first, second, first]) == [first, second, first]  # a result for each in Python


@pytest.mark.parametrize("source", ["missing.jpg", "missing/", "missing/*.jpg"])
def test_missing_source(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="missing"):
        find_sources(tmp_path / source)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no image or video among 1 files; expected one of .*\.jpg"):
        find_sources(tmp_path)


def test_frames_of_every_kind_are_the_same_pixels(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    frames = list(read_frames([path, Image.fromarray(array), array, tensor]))
    assert [frame.source for frame in frames] == [str(path), "", "", ""]
    for frame in frames:
        assert torch.equal(frame.pixels, tensor)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        torch.zeros(4, 5, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 4, 5, dtype=torch.uint8),
        Image.new("I;16", (4, 5)),
    ],
)
def test_pixels_of_the_wrong_kind(pixels: Pixels) -> None:
    with pytest.raises(ImageError, match=r"got .* expected RGB in 0-255"):
        list(read_frames([pixels]))


def test_gray_and_transparent_pil_images_become_rgb() -> None:
    images = [Image.new("L", (4, 5), 7), Image.new("RGBA", (4, 5), (7, 7, 7, 0))]
    for frame in read_frames(images):
        assert frame.pixels.shape == (3, 5, 4)
        assert (frame.pixels == 7).all()


def test_every_frame_of_a_video(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4")
    frames = list(read_frames(find_sources(tmp_path)))
    assert [frame.source for frame in frames] == [f"{path}#{number}" for number in range(5)]
    for number, frame in enumerate(frames):
        assert frame.pixels.shape == (3, 16, 32)
        assert abs(frame.pixels[:, :, 20:].float().mean() - 20 * number) < 8


def test_video_is_read_frame_by_frame(tmp_path: Path) -> None:
    frames = read_frames([video(tmp_path / "clip.mp4"), tmp_path / "missing.jpg"])
    assert next(frames).source.endswith("#0")  # the missing file is not yet touched


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_video_is_turned_upright(tmp_path: Path, rotation: int) -> None:
    """90 is counter-clockwise; a telephone held upright writes -90."""
    frame = next(read_frames([video(tmp_path / "clip.mp4", rotation=rotation)]))
    bright = {
        90: (slice(16, 32), slice(0, 16)),
        180: (slice(0, 16), slice(16, 32)),
        -90: (slice(0, 16), slice(0, 16)),
    }
    rows, columns = bright[rotation]
    assert frame.pixels.shape == ((3, 16, 32) if rotation == 180 else (3, 32, 16))
    assert frame.pixels[:, rows, columns].float().mean() > 80
    assert frame.pixels.float().mean() < 60


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:a.mp4|a.mp4", "img%03d.mp4"])
def test_the_name_of_a_video_is_not_an_address(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "a.mp4").rename(name)
    assert len(list(read_frames([Path(name)]))) == 5


@pytest.mark.parametrize("content", [b"no video", b"ffconcat version 1.0\nfile a.mp4\n"])
def test_broken_video(content: bytes, tmp_path: Path) -> None:
    video(tmp_path / "a.mp4")
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ImageError, match=r"clip\.mp4: cannot be read as a video"):
        list(read_frames([tmp_path / "clip.mp4"]))
