"""Training on tiles: which objects are trained on in which tile, and that pixels, boxes and masks belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from querybox.data import DataSettings, DetectionData, ImageRecord
from querybox.data.image import examine_image
from querybox.data.loader import train_loader
from querybox.data.scan import examine_images
from querybox.data.tiff import examine_tiff
from querybox.data.tiled import MIN_VISIBLE, TileRecord, tiled, with_whole_images
from querybox.data.tiling import Tiling
from querybox.data.training_images import TrainingImages, UnreadableImage, decoded_bytes
from querybox.data.validate import most_objects, with_dataset_findings
from querybox.errors import ConfigError, ImageError
from querybox.masks import Rle
from querybox.polygons import Polygons
from querybox.structures import Category

SIZE = (90, 130)
TILED = DataSettings(tile=40, overlap=0.25, image_size=40, crop=0, horizontal_flip=0, scales=(40,), workers=0)
"""An overlap of 10 pixels."""
CATEGORIES = (Category(id=1, name="a"), Category(id=2, name="b"))


def record(
    boxes: list[list[float]], path: Path = Path("a.png"), size: tuple[int, int] = SIZE, **given: Any
) -> ImageRecord:
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return ImageRecord(
        **{
            "id": 7,
            "path": path,
            "width": size[1],
            "height": size[0],
            "boxes_xyxy": corners,
            "labels": np.arange(len(boxes)) % 2,
            "crowd": np.zeros(len(boxes), dtype=bool),
            "areas": np.ones(len(boxes)),
            **given,
        }
    )


def dataset(*images: ImageRecord) -> DetectionData:
    return DetectionData(source=Path("data"), categories=CATEGORIES, images=images)


def tiles_of(data: DetectionData, settings: DataSettings = TILED) -> list[TileRecord]:
    tiles = list(tiled(data, settings).images)
    assert all(isinstance(tile, TileRecord) for tile in tiles)
    return tiles  # type: ignore[return-value] # checked


def random_boxes(count: int, largest: int) -> list[list[float]]:
    random = np.random.default_rng(0)
    low = random.integers(0, (SIZE[1] - 1, SIZE[0] - 1), (count, 2))
    high = np.minimum(low + random.integers(1, largest, (count, 2)), (SIZE[1], SIZE[0]))
    return np.concatenate([low, high], 1).tolist()


def test_the_rule_for_objects_that_are_cut() -> None:
    """By counting pixels: a whole object is a target, and one of which at least half is visible, up to the border."""
    boxes = random_boxes(60, 50)
    crowd = np.arange(60) % 10 == 0
    tiles = tiles_of(dataset(record(boxes, crowd=crowd)))
    windows = Tiling(40, 0.25).windows(SIZE)[1:]
    assert [tile.window for tile in tiles] == list(windows)
    assert len({tile.id for tile in tiles}) == len(tiles)
    kept = 0
    for tile in tiles:
        left, top, width, height = tile.window
        assert (tile.width, tile.height) == (width, height) == (40, 40)
        row = 0
        for number, (x0, y0, x1, y1) in enumerate(np.array(boxes, dtype=int).tolist()):
            canvas = np.zeros(SIZE, dtype=bool)
            canvas[y0:y1, x0:x1] = True
            ys, xs = canvas[top : top + height, left : left + width].nonzero()
            if not len(xs):
                continue
            assert tile.boxes_xyxy[row].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert tile.labels[row] == number % 2
            assert tile.crowd[row] == (crowd[number] or len(xs) < MIN_VISIBLE * canvas.sum())
            assert tile.areas[row] == len(xs)
            kept += not tile.crowd[row]
            row += 1
        assert row == len(tile.labels)
    assert kept > 60


def test_an_object_of_the_overlap_is_whole_in_a_tile() -> None:
    for box in random_boxes(200, 11):
        (x0, y0, x1, y1) = box
        shapes = [
            tuple((each.boxes_xyxy[0, 2:] - each.boxes_xyxy[0, :2]).tolist())
            for each in tiles_of(dataset(record([box])))
            if (~each.crowd).any()
        ]
        assert (x1 - x0, y1 - y0) in shapes


def test_an_image_that_fits_one_tile_is_one() -> None:
    boxes = random_boxes(9, 30)
    whole = record(boxes)
    (tile,) = tiles_of(dataset(whole), TILED.replace(tile=130))
    assert tile.is_whole
    np.testing.assert_array_equal(tile.boxes_xyxy, whole.boxes_xyxy)
    assert not tile.crowd.any()
    assert tiled(dataset(whole), DataSettings()).images == (whole,)


def triangle(x: float, y: float, side: float) -> Polygons:
    return Polygons.of([[x, y, x + side, y, x, y + side]])


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
def test_masks_are_cut_with_the_image(kind: str) -> None:
    """The visible fraction is that of the mask, and a box that is cut is that of the visible part of the mask."""
    polygons = [triangle(x, y, 32) for x, y in ((3, 4), (25, 20), (60, 50), (90, 10), (95, 60))]
    masks = [Rle.of_polygons(each, SIZE) for each in polygons]
    boxes = [list(mask.box_xyxy or ()) for mask in masks]
    regions = polygons if kind == "polygons" else masks
    whole = record(boxes, masks=[*regions[:4], None])
    cut = 0
    for tile in tiles_of(dataset(whole)):
        left, top, width, height = tile.window
        row = 0
        for index, mask in enumerate(masks):
            part = mask.mask()[top : top + height, left : left + width]
            ys, xs = part.nonzero()
            x0, y0, x1, y1 = boxes[index]
            if min(x1, left + width) <= max(x0, left) or min(y1, top + height) <= max(y0, top):
                continue
            if index < 4:
                assert tile.masks is not None
                region = tile.masks[row]
                assert region is not None
                shown = Rle.of_polygons(region, (height, width)) if isinstance(region, Polygons) else region
                np.testing.assert_array_equal(shown.mask(), part)
                assert tile.crowd[row] == (part.sum() < MIN_VISIBLE * mask.area)
                if not tile.crowd[row]:
                    found = tile.boxes_xyxy[row].tolist()
                    assert found == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                    cut += int(part.sum() < mask.area)
            elif tile.masks is not None:
                assert tile.masks[row] is None
            row += 1
        assert row == len(tile.labels)
    assert cut > 1


def test_a_whole_image_is_added_if_no_tile_is_certain_to_show_its_objects() -> None:
    """The image is shown at 40 x 57, so that 12 pixels become 5.3, and 20 become 8.9."""
    large, small = [5.0, 5, 25, 25], [50.0, 50, 62, 62]
    images = (
        record([large, small, large], crowd=np.array([False, False, True])),
        record([[50, 50, 59, 59]], id=8),
        record([large], id=9, crowd=np.array([True])),
    )
    data = dataset(*images)
    tiles = tiled(data, TILED)
    views = with_whole_images(tiles, data, TILED).images
    assert views[: len(tiles.images)] == tiles.images
    (whole,) = views[len(tiles.images) :]
    assert isinstance(whole, TileRecord)
    assert (whole.image.id, whole.is_whole, whole.crowd.tolist()) == (7, True, [False, True, True])
    assert whole.id == len(views)
    assert with_whole_images(data, data, DataSettings()) is data


@pytest.fixture
def noise(tmp_path: Path) -> np.ndarray[Any, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(16, 32), compression="deflate")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return pixels


@pytest.mark.parametrize("name", ["a.png", "a.tif", "large.tif"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_tile_is_loaded_with_its_pixels(
    name: str, cache: bool, noise: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "large.tif":
        (tmp_path / "a.tif").rename(tmp_path / name)
        for module in ("image", "tiled"):
            monkeypatch.setattr(f"querybox.data.{module}.MAX_PIXELS", 10_000)
        monkeypatch.setattr("querybox.data.tiff.MAX_REDUCED", 4_000)
    polygons = triangle(20, 30, 50)
    box = list(Rle.of_polygons(polygons, SIZE).box_xyxy or ())
    data = dataset(record([box], tmp_path / name, masks=[polygons]))
    settings = TILED.replace(cache=cache)
    views = with_whole_images(tiled(data, settings), data, settings)
    images = TrainingImages(views, settings, seed=0, masks=True)
    for index, tile in enumerate(views.images):
        sample = images.load(index, np.random.default_rng(0))
        assert not isinstance(sample, UnreadableImage)
        assert isinstance(tile, TileRecord)
        left, top, width, height = tile.window
        if tile.is_whole and name == "large.tif":
            assert sample.pixels.shape == (3, 45, 65)
            assert sample.masks is not None
            torch.testing.assert_close(sample.boxes_xyxy[0], torch.tensor(box) / 2, rtol=0, atol=1e-4)
            continue
        expected = noise[top : top + height, left : left + width]
        np.testing.assert_array_equal(sample.pixels.permute(1, 2, 0), expected)
        assert len(sample.labels) == int((~tile.crowd).sum())
    if cache and name != "large.tif":
        assert images.cached is not None
        storages = {
            each.untyped_storage().data_ptr() for each in images.cached if isinstance(each, torch.Tensor)
        }
        assert len(storages) == 1
    held = SIZE[0] * SIZE[1] if name != "large.tif" else 40 * 40 * (len(views.images) - 1) + SIZE[0] * SIZE[1]
    assert decoded_bytes(views, settings) == 3 * held


def test_a_batch_of_tiles(noise: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """Epochs are over tiles, in an order that the seed determines; a batch has the visible parts of objects."""
    data = tiled(dataset(record([[0, 0, 30, 20]], tmp_path / "a.png")), TILED)
    assert len(data.images) == 12
    orders = []
    for _ in range(2):
        loader = train_loader(data, TILED, batch_size=4, seed=3)
        batches = list(loader)
        assert sum(len(target.labels) for batch in batches for target in batch.targets) == 1
        orders.append([batch.image_ids for batch in batches])
    assert orders[0] == orders[1]
    assert sorted(image_id for ids in orders[0] for image_id in ids) == list(range(1, 13))
    assert loader.dataset.describe([2]) == "the tiles a.png from (30, 0)"


def test_tiles_of_a_file_that_is_gone_cannot_be_read(tmp_path: Path) -> None:
    data = tiled(dataset(record([], tmp_path / "gone.png")), TILED)
    found = TrainingImages(data, TILED, seed=0)[0, 0]
    assert isinstance(found, UnreadableImage)
    assert "gone.png: no such image file" in found.reason


def test_too_many_objects_are_those_of_a_tile(tmp_path: Path) -> None:
    boxes = [[float(x), float(y), x + 5.0, y + 5] for x in range(0, 125, 10) for y in range(0, 85, 10)]
    data = dataset(record(boxes))
    assert most_objects(data, DataSettings()) == {7: len(boxes)}
    assert most_objects(data, TILED) == {7: 16}
    for queries, expected in ((16, 0), (15, 1)):
        found = with_dataset_findings(data, 0.0, queries, settings=TILED).findings
        assert sum(finding.count for finding in found if finding.kind == "too_many_objects") == expected


def test_large_files_are_examined_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(100, 4000, SIZE, dtype=np.uint16)
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, values, tile=(32, 32), compression="deflate")
    expected = examine_image(path, SIZE)
    assert examine_tiff(path, SIZE) == expected
    assert expected.deep is not None
    monkeypatch.setattr("querybox.data.image.MAX_PIXELS", 10_000)
    image = record([], path)
    (refused,) = examine_images([image])
    assert refused.kind == "too_large_image"
    assert [each.kind for each in examine_images([image], in_parts=True)] == ["deep_image", "narrow_range"]
    with pytest.raises(ImageError, match="its annotations say 90x131"):
        examine_tiff(path, (90, 131))
    path.write_bytes(path.read_bytes()[:-2000])
    (broken,) = examine_images([image], in_parts=True)
    assert broken.kind == "broken_image"


@pytest.mark.parametrize("wrong", [{"tile": 31}, {"tile": 9000}, {"overlap": 0.95}, {"tile": "auto"}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataSettings.parse(wrong)
