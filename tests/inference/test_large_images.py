"""Images that are too large to be decoded as a whole, and evaluation with tiles."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from jaxtyping import Float
from PIL import Image
from scenes import CATEGORIES, TILE, Box, Oracle, scene
from torch import Tensor

from querybox.data import DetectionData, ImageRecord
from querybox.errors import ConfigError, DataError, ImageError
from querybox.evaluation.evaluate import evaluate
from querybox.inference.drawings import draw_files
from querybox.inference.predict import predict
from querybox.report.examples import make_example


def rounded(boxes_xyxy: Float[Tensor, "N 4"]) -> list[list[int]]:
    return sorted(boxes_xyxy.round().int().tolist())


BOXES: list[Box] = [(32, 32, 272, 272), (180, 300, 204, 312), (8, 8, 20, 20), (390, 390, 399, 399)]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TIFF of 400 x 400 pixels, where only 300 x 300 may be decoded at once."""
    monkeypatch.setattr("querybox.data.image.MAX_PIXELS", 90_000)
    pixels = scene((400, 400), BOXES).permute(1, 2, 0).numpy()
    tifffile.imwrite(tmp_path / "large.tif", pixels, photometric="rgb", tile=(64, 64), compression="deflate")
    return tmp_path / "large.tif"


@pytest.mark.parametrize("reduced", [160_000, 40_000])
def test_a_large_file_is_read_in_tiles(large: Path, reduced: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.data.tiff.MAX_REDUCED", reduced)
    (found,) = predict(Oracle(), large, tile=TILE)
    (expected,) = predict(Oracle(), scene((400, 400), BOXES), tile=TILE)
    assert (found.source, found.size) == (str(large), (400, 400))
    assert rounded(found.boxes_xyxy) == rounded(expected.boxes_xyxy) == sorted(map(list, BOXES))


def test_a_large_file_is_drawn_reduced(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.data.tiff.MAX_REDUCED", 40_000)
    (found,) = predict(Oracle(), large, tile=TILE)
    draw_files([large], [tmp_path / "drawn.png"], iter([found]))
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.size == (200, 200)
        row = {picture.getpixel((x, 100)) for x in range(14, 19)}  # across the left edge of the first box
    assert row - {(0, 0, 0), (200, 10, 0), (100, 5, 0)}


def test_large_files_that_cannot_be_read(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tiles, in another format, damaged in its last part, and with tiles that are too many."""
    with pytest.raises(
        ImageError, match=r"large\.tif: .* expected at most 90,000: .* save it as a TIFF with tiles"
    ):
        list(predict(Oracle(), large))
    Image.fromarray(scene((400, 400), []).permute(1, 2, 0).numpy()).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match=r"large\.png: .* expected at most 90,000"):
        list(predict(Oracle(), tmp_path / "large.png", tile=TILE))
    monkeypatch.setattr("querybox.data.tiling.MAX_TILES", 24)
    with pytest.raises(ConfigError, match="into 25 tiles; expected at most 24: set a larger tile"):
        list(predict(Oracle(), large, tile=TILE))


def break_off(large: Path) -> Path:
    """Return a copy whose last part is damaged."""
    with tifffile.TiffFile(large) as file:
        offset, count = (getattr(file.pages.first, name)[-1] for name in ("dataoffsets", "databytecounts"))
    content = large.read_bytes()
    broken = large.with_name("broken.tif")
    broken.write_bytes(content[:offset] + bytes(count) + content[offset + count :])
    return broken


def test_a_file_that_breaks_off_is_skipped(large: Path) -> None:
    """Its last part is read when most tiles have been detected."""
    broken = break_off(large)
    errors: list[ImageError] = []
    found = list(predict(Oracle(), [large, broken, large], tile=TILE, on_error=errors.append))
    assert [each.source for each in found] == [str(large)] * 2
    assert "broken.tif: cannot be read as a TIFF" in str(errors[0])


def dataset(*paths: Path, boxes: list[Box], size: tuple[int, int] = (400, 400)) -> DetectionData:
    """Return the data of images with the same objects, with ids from 1."""
    labels = np.zeros(len(boxes), dtype=np.int64)
    corners = np.array(boxes, dtype=np.float64)
    records = [
        ImageRecord(
            id=number,
            path=path,
            width=size[1],
            height=size[0],
            boxes_xyxy=corners,
            labels=labels,
            crowd=labels > 0,
            areas=(corners[:, 2:] - corners[:, :2]).prod(1),
        )
        for number, path in enumerate(paths, 1)
    ]
    return DetectionData(source=paths[0].parent, categories=CATEGORIES, images=tuple(records))


def save(path: Path, pixels: Tensor) -> Path:
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return path


def test_evaluation_finds_small_objects_with_tiles(tmp_path: Path) -> None:
    boxes = [(x, y, x + 6, y + 6) for x in range(12, 400, 130) for y in range(12, 400, 130)]
    data = dataset(save(tmp_path / "a.png", scene((400, 400), boxes)), boxes=boxes)
    engine = Oracle(smallest=12)
    assert evaluate(engine, data).metrics["AP"] == 0
    assert evaluate(engine, data, tile=TILE).metrics["AP"] == pytest.approx(1)


def test_the_evaluation_of_images_that_fit_one_tile_is_that_without_tiles(tmp_path: Path) -> None:
    data = dataset(save(tmp_path / "a.png", scene((400, 400), BOXES)), boxes=BOXES)
    plain, tiled = evaluate(Oracle(), data), evaluate(Oracle(), data, tile=400, overlap=0.3)
    assert tiled.metrics == pytest.approx(plain.metrics, rel=0, abs=0, nan_ok=True)
    assert torch.equal(tiled.detections[1].boxes_xyxy, plain.detections[1].boxes_xyxy)
    assert torch.equal(tiled.detections[1].scores, plain.detections[1].scores)


def test_large_files_are_evaluated_in_parts(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large file, one that breaks off, and the large file again."""
    data = dataset(large, break_off(large), large, boxes=BOXES)
    with pytest.raises(DataError, match=r"3 of 3 images cannot be read.*expected at most 90,000"):
        evaluate(Oracle(), data)
    with monkeypatch.context() as patch:
        patch.setattr("querybox.data.image.MAX_PIXELS", 10**6)
        expected = evaluate(Oracle(), data.only({1, 3}), tile=TILE)
    found = evaluate(Oracle(), data, tile=TILE, max_corrupt=0.5)
    assert list(found.unreadable) == [2]
    assert "broken.tif: cannot be read as a TIFF" in found.unreadable[2]
    for number in (1, 3):
        assert torch.equal(found.detections[number].boxes_xyxy, expected.detections[number].boxes_xyxy)
    assert found.metrics["AP"] == pytest.approx(1)

    wrong = dataset(large, boxes=BOXES, size=(399, 400))
    with pytest.raises(DataError, match=r"is 400x400 .* but its annotations say 399x400"):
        evaluate(Oracle(), wrong, tile=TILE)


def test_the_report_shows_a_large_file_reduced(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.data.tiff.MAX_REDUCED", 40_000)
    data = dataset(large, boxes=BOXES)
    example = make_example(evaluate(Oracle(), data, tile=TILE), data.images[0])
    assert not example.problem
    with Image.open(BytesIO(b64decode(example.urls["Objects"].partition(",")[2]))) as picture:
        assert picture.size == (200, 200)
        edge = np.asarray(picture)[100, 10:24].astype(int)  # the first box begins at 16
    assert np.abs(np.diff(edge, axis=0)).max(1).argmax() == pytest.approx(5, abs=2)
