"""Every result of `querybox predict` has a file of its own, with the same name in all formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import CATS_AND_DOGS, TINY, save_detector

import querybox as qb


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a detector with random masks."""
    torch.manual_seed(0)
    detector = qb.Detector.from_recipe("dino_small", categories=CATS_AND_DOGS, masks=True, **TINY)
    detector.preprocessing = qb.Preprocessing(short_side=32, long_side=64)
    path = tmp_path_factory.mktemp("segmenter") / "model.safetensors"
    detector.save(path)
    return path


def write_video(path: Path, frames: int) -> None:
    import av

    random = np.random.default_rng(frames)
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def images(output: Path) -> list[str]:
    return [image["file_name"] for image in json.loads((output / "detections.json").read_text())["images"]]


def test_frames_and_photos_have_files_of_their_own(run: Any, segmenter: Path, tmp_path: Path) -> None:
    """In a folder with two videos and a photo that was taken of one of them."""
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "clip.avi", 2)
    write_video(tmp_path / "v" / "clip.mp4", 3)
    write_photo(tmp_path / "v" / "clip_000001.jpg")
    formats = "pictures,coco,csv,yolo,masks,panoptic"
    code, _, err = run("predict", segmenter, "v", "--threshold", "0", "--format", formats, "--output", "o")
    output = tmp_path / "o"
    assert code == 0
    assert err == (
        "results have other names where names of files repeat or are too long: clip-2 for v/clip.mp4, "
        "clip_000001-2 for v/clip_000001.jpg\n"
    )
    sources = images(output)
    assert sources == [
        *(f"v/clip.avi#{number}" for number in range(2)),
        *(f"v/clip.mp4#{number}" for number in range(3)),
        "v/clip_000001.jpg",
    ]
    expected = sorted(
        ["clip_000000", "clip_000001", "clip-2_000000", "clip-2_000001", "clip-2_000002", "clip_000001-2"]
    )
    for folder in ("labels", "masks", "panoptic"):
        assert names(output / folder) == expected, folder
    assert {path.name for path in output.glob("clip*")} == {"clip.mp4", "clip-2.mp4", "clip_000001-2.jpg"}
    with (output / "detections.csv").open() as file:
        rows = [row["source"] for row in csv.DictReader(file)]
    for source, name in zip(sources, ["clip_000000", "clip_000001"], strict=False):
        assert (output / "labels" / f"{name}.txt").read_text().count("\n") <= rows.count(source)
    with Image.open(output / "masks" / "clip_000001.png") as frame:
        assert frame.size == (64, 48)
    with Image.open(output / "masks" / "clip_000001-2.png") as photo:
        assert photo.size == (60, 40)


def test_tables_alone_need_no_names(run: Any, model: Path, tmp_path: Path) -> None:
    write_photo(tmp_path / "x" / "a.jpg"), write_photo(tmp_path / "y" / "a.jpg", 1)
    assert run("predict", model, "x", "y", "--format", "coco,csv")[0::2] == (0, "")
    code, _, err = run("predict", model, "x", "y", "--format", "yolo", "--output", "o")
    assert (code, err) == (
        0,
        "results have other names where names of files repeat or are too long: a-2 for y/a.jpg\n",
    )
    assert names(tmp_path / "o" / "labels") == ["a", "a-2"]


@pytest.mark.parametrize(
    "sources",
    [("x/a.jpg", "x/a_2.jpg", "x/a.jpg"), ("x", "x/a.jpg"), ("x/*.jpg", "x/a*"), ("x/a.jpg", "{0}/x/../x")],
)
def test_a_file_that_is_named_twice_is_predicted_once(
    run: Any, model: Path, tmp_path: Path, sources: tuple[str, ...]
) -> None:
    write_photo(tmp_path / "x" / "a.jpg"), write_photo(tmp_path / "x" / "a_2.jpg", 1)
    words = [source.format(tmp_path) for source in sources]
    code, out, err = run("predict", model, *words, "--format", "pictures,coco,csv,yolo", "--output", "o")
    assert code == 0
    assert "in 2 images" in out
    assert err.startswith("files that are named more than once are used once: x/a.jpg")
    assert [Path(name).name for name in images(tmp_path / "o")] == ["a.jpg", "a_2.jpg"]
    assert names(tmp_path / "o" / "labels") == ["a", "a_2"]
    assert {path.name for path in (tmp_path / "o").glob("*.jpg")} == {"a.jpg", "a_2.jpg"}


def test_a_video_that_is_named_twice_is_tracked_once(run: Any, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    write_video(tmp_path / "clip.mp4", 3)
    words = ("predict", model, "clip.mp4", tmp_path / "clip.mp4", "--track", "--threshold", "0")
    code, out, err = run(*words, "--format", "mot,coco", "--output", "o")
    assert (code, err) == (0, "files that are named more than once are used once: clip.mp4\n")
    assert "in 3 images" in out
    assert names(tmp_path / "o" / "mot") == ["clip"]


def test_links_are_files_of_their_own(run: Any, model: Path, tmp_path: Path) -> None:
    photo = write_photo(tmp_path / "x" / "a.jpg")
    (tmp_path / "x" / "b.jpg").symlink_to(photo)
    assert run("predict", model, "x", "--format", "yolo", "--output", "o")[0::2] == (0, "")
    assert names(tmp_path / "o" / "labels") == ["a", "b"]


def test_masks_never_overwrite_a_source(run: Any, segmenter: Path, tmp_path: Path) -> None:
    source = write_photo(tmp_path / "masks" / "a.png")
    before = source.read_bytes()
    words = ("predict", segmenter, "masks", "--threshold", "0", "--output", ".", "--overwrite", "--format")
    code, _, err = run(*words, "masks")
    assert (code, source.read_bytes()) == (2, before)
    assert err.startswith(
        "ConfigError: masks/a.png: is in masks, to which results are written; expected another"
    )


@pytest.mark.parametrize("name", ["cat\nowl", "cat "])
def test_classes_that_labels_of_yolo_cannot_have_are_refused_first(
    run: Any, photos: Path, tmp_path: Path, name: str
) -> None:
    model = save_detector(tmp_path / "model.safetensors", 32, 64, categories=[name, "dog"])
    words = ("predict", model, photos / "images", "--output", "found", "--format")
    code, _, err = run(*words, "csv,yolo")
    assert code == 2
    message = f"--format yolo: there are class names that a line of classes.txt cannot hold: {name!r}; expected 1 to"
    assert err.startswith(f"ConfigError: {message}")
    assert err.endswith("rename these classes, or write another format\n")
    assert not (tmp_path / "found").exists()
    assert run(*words, "csv")[0] == 0
