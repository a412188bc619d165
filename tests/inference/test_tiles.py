"""Tiles: where they are, and that an object is found once wherever the seams are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from scenes import CATEGORIES, TILE, Oracle, scene
from tiny_models import PUBLIC
from torch import Tensor

from querybox.data.tiling import Tile, Tiling, suitable_tile
from querybox.data.windows import Window
from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.merge import merge
from querybox.inference.predict import predict
from querybox.inference.tiles import View, merged
from querybox.masks import Rle
from querybox.object_sides import ObjectSides
from querybox.structures import Preprocessing


def search(
    engine: Engine, pixels: Tensor, tile: Tile = TILE, overlap: float = 0.2, threshold: float = 0.5
) -> Detections:
    (found,) = predict(engine, pixels, tile=tile, overlap=overlap, threshold=threshold)
    return found


def rounded(boxes_xyxy: Float[Tensor, "N 4"]) -> list[list[int]]:
    return sorted(boxes_xyxy.round().int().tolist())


def test_windows() -> None:
    assert Tiling(100, 0.2).windows((100, 80)) == (Window(0, 0, 80, 100),)
    assert Tiling(100, 0.2).windows((80, 260)) == (
        Window(0, 0, 260, 80),
        Window(0, 0, 100, 80),
        Window(80, 0, 100, 80),
        Window(160, 0, 100, 80),
    )
    assert [(each.left, each.top) for each in Tiling(100, 0.0).windows((200, 101))[1:]] == [
        (0, 0),
        (1, 0),
        (0, 100),
        (1, 100),
    ]


@pytest.mark.parametrize("length", [101, 179, 180, 181, 1000, 1001])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.33, 0.9])
def test_tiles_cover_an_axis_and_overlap_enough(length: int, overlap: float) -> None:
    starts = np.array(Tiling(100, overlap).starts(length))
    assert (starts[0], starts[-1]) == (0, length - 100)
    assert (np.diff(starts) > 0).all()
    assert np.diff(starts).max() <= np.ceil(100 * (1 - overlap))
    assert len(starts) == np.ceil((length - 100) / (100 * (1 - overlap)) - 1e-9) + 1


@pytest.mark.parametrize(("tile", "overlap"), [(31, 0.2), (64, 0.91), (64, -0.1)])
def test_arguments_out_of_range(tile: int, overlap: float) -> None:
    with pytest.raises(ConfigError, match=r"got (tile|overlap)=.*; expected"):
        search(Oracle(), scene((200, 200), []), tile, overlap)


def test_an_image_that_fits_one_tile_is_predicted_as_without_tiles() -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", categories=["cat", "dog"], **PUBLIC)
    detector.preprocessing = Preprocessing(short_side=64, long_side=96)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 90, 100), dtype=np.uint8))
    (tiled,), (plain,) = (predict(detector, pixels, tile=tile, threshold=0.0) for tile in (100, None))
    assert torch.equal(tiled.boxes_xyxy, plain.boxes_xyxy)
    assert torch.equal(tiled.scores, plain.scores)
    assert torch.equal(tiled.labels, plain.labels)
    assert not torch.equal(search(detector, pixels, tile=99, threshold=0.0).scores, plain.scores)


@pytest.mark.parametrize("x", range(40, 100, 3))
@pytest.mark.parametrize("side", [4, 15, 40, 70])
def test_an_object_on_a_seam_is_found_once(x: int, side: int) -> None:
    """Tiles of 100 overlap by 20, so that objects of 40 and 70 pixels are cut by both tiles at some places."""
    box = (x, 90, x + side, 90 + side)
    found = search(Oracle(), scene((260, 260), [box]))
    assert found.names == ["cell"]
    assert (found.boxes_xyxy - torch.tensor([box])).abs().max() <= 2.6  # a pixel of the whole image, resized


@pytest.mark.parametrize("x", [30, 75, 81])
def test_what_no_view_shows_whole_is_joined(x: int) -> None:
    """With a minimum of pixels, the whole image at half its size shows nothing, and a tile half of the object."""
    box = (x, 20, x + 150, 26)  # 900 pixels
    wide = scene((400, 420), [box])
    found = search(Oracle(smallest=100), wide)
    assert rounded(found.boxes_xyxy) == [list(box)]
    assert len(search(Oracle(smallest=100), wide, tile=None)) == 0


def test_an_object_larger_than_a_tile_is_that_of_the_whole_image() -> None:
    box = (20, 32, 300, 312)  # exact also at a quarter of the size
    found = search(Oracle(), scene((400, 400), [box, (350, 350, 353, 354)]))
    assert rounded(found.boxes_xyxy) == [list(box), [350, 350, 353, 354]]


def test_neighbours_at_a_seam_remain_two() -> None:
    """Of the same class, side by side across the seam, and one inside the other."""
    boxes = [(60, 20, 88, 50), (88, 20, 116, 50), (69, 120, 114, 174), (75, 129, 99, 159)]
    found = search(Oracle(), scene((300, 300), boxes))
    assert rounded(found.boxes_xyxy) == sorted(map(list, boxes))
    assert found.names == ["cell"] * 4
    assert (found.scores.diff() <= 0).all()


def test_classes_are_merged_apart() -> None:
    """Where two views name an object differently, both classes remain, as in class-wise suppression."""
    windows = Tiling(100, 0.2).windows((100, 180))
    parts = [detections(window, [], []) for window in windows]
    parts[1] = detections(windows[1], [[82, 10, 98, 40]], [0.9], label=0)
    parts[2] = detections(windows[2], [[2, 10, 18, 40]], [0.8], label=1)
    found = merge(parts, windows, (100, 180))
    assert found.names == ["cell", "dust"]
    assert found.boxes_xyxy.tolist() == [[82, 10, 98, 40]] * 2


def detections(window: Window, boxes: list[list[float]], scores: list[float], label: int = 0) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.full((len(scores),), label),
        categories=CATEGORIES,
        size=(window.height, window.width),
    )


def test_whole_before_cut_and_tiles_before_the_whole_image() -> None:
    windows = Tiling(100, 0.2).windows((100, 180))  # tiles from 0 and from 80
    parts = [
        detections(windows[0], [[110, 11, 121, 19], [58, 11, 91, 41]], [0.9, 0.5]),
        detections(windows[1], [[70, 60, 99, 90], [60, 10, 90, 40]], [0.99, 0.6]),
        detections(windows[2], [[0, 60, 30, 90], [0, 10, 10, 40], [30, 10, 40, 20]], [0.98, 0.97, 0.4]),
    ]
    found = merge(parts, windows, (100, 180))
    assert found.size == (100, 180)
    torch.testing.assert_close(found.scores, torch.tensor([0.99, 0.6, 0.4]))
    # The part in the second tile does not match any more than 10 of 20 pixels; the cut ones are joined.
    assert found.boxes_xyxy.tolist() == [[70, 60, 110, 90], [60, 10, 90, 40], [110, 10, 120, 20]]


@pytest.mark.parametrize("score", [0.3, 0.99])
def test_a_part_whose_box_ends_before_the_border_gives_way_to_the_whole(score: float) -> None:
    """It is a part, because the other tile shows the object whole and beyond the border; not so at the image's own."""
    windows = Tiling(100, 0.2).windows((100, 180))  # tiles from 0 and from 80
    parts = [
        detections(windows[0], [], []),
        detections(windows[1], [[82, 10, 96, 40], [84, 60, 97, 98]], [score, 0.9]),
        detections(windows[2], [[2, 10, 25, 40], [4, 60, 17, 105]], [0.6, 0.8]),
    ]
    found = merge(parts, windows, (100, 180))
    assert rounded(found.boxes_xyxy) == [[82, 10, 105, 40], [84, 60, 97, 98]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))


def test_masks_of_parts_are_united() -> None:
    size = (100, 180)
    windows = Tiling(100, 0.2).windows(size)
    mask = np.zeros(size, dtype=bool)
    mask[60:90, 70:110] = True
    mask[70:80, 75:100] = False
    part = mask.copy()
    part[:, :80] = False  # what the right tile shows
    parts = [
        detections(windows[0], [[3, 5, 40, 10]], [0.3]),
        detections(windows[1], [[70, 60, 100, 90]], [0.9]),
        detections(windows[2], [[0, 60, 30, 90]], [0.8]),
    ]
    whole = np.zeros(size, dtype=bool)
    whole[5:10, 3:40] = True
    masks = [whole, mask[:, :100], mask[:, 80:]]
    masked = [
        Detections(**{**{name: getattr(each, name) for name in each.__slots__}, "masks": (Rle.of(one),)})
        for each, one in zip(parts, masks, strict=True)
    ]
    found = merge(masked, windows, size)
    assert found.boxes_xyxy.tolist() == [[70, 60, 110, 90], [3, 5, 40, 10]]
    assert found.masks == (Rle.of(mask), Rle.of(whole))


def test_an_image_whose_last_tile_is_missing_is_skipped() -> None:
    windows = Tiling(100, 0.2).windows((100, 180))
    empty = [detections(window, [], []) for window in windows]
    views = [View((100, 180), windows, index) for index in range(3)]
    results = list(zip(views, empty, strict=True))
    assert len(list(merged([*results[:2], *results, (None, empty[0])]))) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_of_tiles_give_the_same(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.inference.predict.effective_batch_size", lambda _, size: size)
    images = [
        scene((300, 300), [(69, 69, 111, 111)]),
        scene((50, 50), []),
        scene((80, 300), [(9, 9, 20, 20)]),
    ]
    found = list(predict(Oracle(), images, tile=TILE, batch_size=batch_size))
    assert [rounded(each.boxes_xyxy) for each in found] == [[[69, 69, 111, 111]], [], [[9, 9, 20, 20]]]
    assert [each.size for each in found] == [(300, 300), (50, 50), (80, 300)]


@pytest.mark.parametrize(
    ("original", "resized", "sizes", "expected"),
    [
        (97.0, 64.667, {"short_side": 320, "long_side": 533}, 480),  # photos of 640 x 480
        (
            97.0,
            64.667,
            {"short_side": 160, "long_side": 266},
            240,
        ),  # the same model, exported for smaller images
        (20.0, 20.0, {"short_side": 640, "long_side": 640, "resizing": "stretch"}, 640),
        (
            30.0,
            10.0,
            {"short_side": 200, "long_side": 800, "resizing": "stretch"},
            1200,
        ),  # 200 x 800 is 400 squared
        (30.0, 1.0, {"short_side": 640, "long_side": 1066}, 8192),
        (2.0, 64.0, {"short_side": 320, "long_side": 533}, 32),
    ],
)
def test_automatic_tiles_show_objects_as_in_the_training(
    original: float, resized: float, sizes: dict[str, Any], expected: int
) -> None:
    sides = ObjectSides(original=original, resized=resized)
    assert suitable_tile(Preprocessing(**sizes, object_sides=sides)) == expected


def test_a_model_that_does_not_state_sizes_has_no_automatic_tiles() -> None:
    with pytest.raises(
        ConfigError, match=r"tile='auto' needs the sizes of the objects .*; set a number, such as"
    ):
        search(Oracle(), scene((200, 200), []), "auto")


@pytest.mark.parametrize("side", [0.0, -1.0, float("nan"), float("inf")])
def test_sizes_of_objects_are_checked(side: float) -> None:
    with pytest.raises(ConfigError, match=r"overlap=0.5 has no effect without tile: set it as well"):
        Tiling.of(None, 0.5, Preprocessing())
    with pytest.raises(ConfigError, match=r"ObjectSides got resized=.*; expected"):
        ObjectSides(original=10.0, resized=side)
