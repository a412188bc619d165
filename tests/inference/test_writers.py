from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.drawings import draw_files, draw_video, drawing_paths
from querybox.inference.sources import read_frames
from querybox.inference.writers import coco_file, csv_file
from querybox.structures import Category

CATEGORIES = (Category(id=7, name='a, "b"'), Category(id=0, name="dög"))


def found(source: str, count: int = 2, size: tuple[int, int] = (50, 100)) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 10.0, 60.0, 40.0], [0.0, 0.0, 5.5, 6.25]])[:count],
        scores=torch.tensor([0.75, 0.5])[:count],
        labels=torch.tensor([0, 1])[:count],
        categories=CATEGORIES,
        size=size,
        source=source,
    )


def picture(path: Path, size: tuple[int, int] = (100, 50)) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)
    return path


def test_coco_file(tmp_path: Path) -> None:
    with coco_file(tmp_path / "d.json", CATEGORIES) as add:
        add(found("a.jpg"))
        add(found("b.jpg", count=0))
        add(found("c.mp4#3", count=1))
    content = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert content["categories"] == [{"id": 7, "name": 'a, "b"'}, {"id": 0, "name": "dög"}]
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg", "c.mp4#3"]
    assert content["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    assert [(each["id"], each["image_id"]) for each in content["annotations"]] == [(1, 1), (2, 1), (3, 3)]
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 1,
        "category_id": 0,
        "bbox": [0.0, 0.0, 5.5, 6.25],
        "score": 0.5,
        "area": 5.5 * 6.25,
        "iscrowd": 0,
    }


def test_csv_file(tmp_path: Path) -> None:
    with csv_file(tmp_path / "d.csv") as add:
        add(found("a, b.jpg"))
        add(found("b.jpg", count=0))
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["a, b.jpg", "a, b.jpg"]
    assert rows[0]["name"] == 'a, "b"'
    assert rows[1] == {
        "source": "a, b.jpg",
        "category_id": "0",
        "name": "dög",
        "score": "0.5",
        "left": "0.0",
        "top": "0.0",
        "right": "5.5",
        "bottom": "6.25",
    }


def test_coco_files_have_forward_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")  # as on Windows
    with coco_file(tmp_path / "a.json", CATEGORIES) as add:
        add(found("photos\\a.jpg"))
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["images"][0]["file_name"] == "photos/a.jpg"


def test_picture_paths_never_meet() -> None:
    """Not even where names are equal but for case, as on Windows and macOS."""
    sources = [Path(name) for name in ("x/a.jpg", "y/A.png", "a.mp4", "z/a.jpeg", "a-2.jpg")]
    assert [path.name for path in drawing_paths(sources, Path("out"))] == [
        "a.jpg", "A-2.jpg", "a.mp4", "a-3.jpg", "a-2-2.jpg",
    ]  # fmt: skip


def test_a_drawing_never_overwrites_a_source(tmp_path: Path) -> None:
    sources = [picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg")]
    with pytest.raises(ConfigError, match=r"a\.jpg: the drawing would overwrite a source"):
        drawing_paths(sources, tmp_path)


def test_draws_pictures(tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    draw_files([source], [tmp_path / "drawn.jpg"], iter([found(str(source))]))
    drawn = np.asarray(Image.open(tmp_path / "drawn.jpg")).astype(int)
    assert drawn.shape == (50, 100, 3)
    assert np.abs(drawn[10:40, 10:60] - 90).max() > 50
    assert np.abs(drawn[:, 90:] - 90).max() < 20


@pytest.mark.skipif(os.name == "nt", reason="Windows has no links without privileges")
def test_the_targets_of_links_in_the_output_folder_are_not_overwritten(tmp_path: Path) -> None:
    source = picture(tmp_path / "images" / "a.png")
    (tmp_path / "target").write_text("old")
    for name in ("a.jpg", "d.csv"):
        (tmp_path / name).symlink_to("target")
        (tmp_path / f"hard {name}").hardlink_to(tmp_path / "target")
    for start in ("", "hard "):
        draw_files([source], [tmp_path / f"{start}a.jpg"], iter([found(str(source))]))
        with csv_file(tmp_path / f"{start}d.csv") as add:
            add(found("a.png"))
        with Image.open(tmp_path / f"{start}a.jpg") as drawn:
            assert drawn.size == (100, 50)
        assert (tmp_path / f"{start}d.csv").read_text(encoding="utf-8").startswith("source,")
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
