"""Tiles: where they are, and that an object is found once wherever the seams are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from jaxtyping import Float
from PIL import Image
from tiny_models import PUBLIC
from torch import Tensor

from querybox.data import DetectionData, ImageRecord
from querybox.data.tiling import Tile, Tiling, suitable_tile
from querybox.data.windows import Window
from querybox.detector import Detector
from querybox.errors import ConfigError, ImageError
from querybox.evaluation.evaluate import evaluate
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.merge import merge
from querybox.inference.predict import predict
from querybox.inference.tiles import View, merged
from querybox.inference.writers import draw_files
from querybox.masks import Rle
from querybox.object_sides import ObjectSides
from querybox.structures import Category, DetectorOutput, ImageBatch, Predictions, Preprocessing

TILE = 100
CATEGORIES = (Category(id=1, name="cell"), Category(id=2, name="dust"))
Box = tuple[int, int, int, int]


class Oracle:
    """An engine that finds each object of `scene`, which are told apart by their colours.

    Small objects score higher: what a tile shows of an object scores higher than the object, which misleads
    non-maximum suppression.
    """

    categories = CATEGORIES
    device = torch.device("cpu")
    preprocessing = Preprocessing(
        short_side=TILE, long_side=4 * TILE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )

    def __init__(self, smallest: int = 1) -> None:
        self.smallest = smallest
        """Number of pixels of the smallest object that is found."""

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        logits = torch.full((len(batch.images), 20, 2), -20.0)
        boxes = torch.full((len(batch.images), 20, 4), 0.5)
        for row, (red, green, _) in enumerate(batch.images):
            height, width = red.shape
            numbers = torch.where(red >= 100, (green / red.clamp(min=1) * 20).round(), 0)  # half covered
            for number in set(numbers.unique().int().tolist()) - {0}:
                y, x = (numbers == number).nonzero().T
                if len(x) < self.smallest:
                    continue
                low, high = torch.stack([x.min(), y.min()]), torch.stack([x.max(), y.max()]) + 1
                corners = torch.cat([low + high, 2 * (high - low)]) / 2
                boxes[row, number - 1] = corners / torch.tensor([width, height] * 2)
                logits[row, number - 1, 0] = 4 - len(x) / (height * width)
        return DetectorOutput(layers=(Predictions(logits=logits, boxes=boxes, no_object=False),))


def scene(size: tuple[int, int], boxes: list[Box]) -> Tensor:
    """Return an image of rectangles, at most 20."""
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
        pixels[0, y0:y1, x0:x1], pixels[1, y0:y1, x0:x1] = 200, 10 * number
    return pixels


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
        detections(windows[0], [[58, 11, 91, 41], [110, 11, 121, 19]], [0.5, 0.9]),
        detections(windows[1], [[60, 10, 90, 40], [70, 60, 99, 90]], [0.6, 0.99]),
        detections(windows[2], [[0, 10, 10, 40], [0, 60, 30, 90], [30, 10, 40, 20]], [0.97, 0.98, 0.4]),
    ]
    found = merge(parts, windows, (100, 180))
    assert found.size == (100, 180)
    torch.testing.assert_close(found.scores, torch.tensor([0.99, 0.6, 0.4]))
    # The part in the second tile does not match any more than 10 of 20 pixels; the cut ones are joined.
    assert found.boxes_xyxy.tolist() == [[70, 60, 110, 90], [60, 10, 90, 40], [110, 10, 120, 20]]


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


BOXES: list[Box] = [(32, 32, 272, 272), (180, 300, 204, 312), (8, 8, 20, 20), (390, 390, 399, 399)]


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TIFF of 400 x 400 pixels, where only 300 x 300 may be decoded at once."""
    for module in ("querybox.data.image", "querybox.inference.writers"):
        monkeypatch.setattr(f"{module}.MAX_PIXELS", 90_000)
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


def test_a_file_that_breaks_off_is_skipped(large: Path, tmp_path: Path) -> None:
    """Its last part is read when most tiles have been detected."""
    with tifffile.TiffFile(large) as file:
        offset, count = (getattr(file.pages.first, name)[-1] for name in ("dataoffsets", "databytecounts"))
    content = large.read_bytes()
    broken = tmp_path / "broken.tif"
    broken.write_bytes(content[:offset] + bytes(count) + content[offset + count :])
    errors: list[ImageError] = []
    found = list(predict(Oracle(), [large, broken, large], tile=TILE, on_error=errors.append))
    assert [each.source for each in found] == [str(large)] * 2
    assert "broken.tif: cannot be read as a TIFF" in str(errors[0])


def test_evaluation_finds_small_objects_with_tiles(tmp_path: Path) -> None:
    boxes = [(x, y, x + 6, y + 6) for x in range(12, 400, 130) for y in range(12, 400, 130)]
    pixels = scene((400, 400), boxes)
    path = tmp_path / "a.png"
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    corners = np.array(boxes, dtype=np.float64)
    labels = np.zeros(len(boxes), dtype=np.int64)
    record = ImageRecord(
        id=1,
        path=path,
        width=400,
        height=400,
        boxes_xyxy=corners,
        labels=labels,
        crowd=labels > 0,
        areas=labels + 36.0,
    )
    data = DetectionData(source=tmp_path, categories=CATEGORIES, images=(record,))
    engine = Oracle(smallest=12)
    assert evaluate(engine, data).metrics["AP"] == 0
    assert evaluate(engine, data, tile=TILE).metrics["AP"] == pytest.approx(1)


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
    with pytest.raises(ConfigError, match=r"ObjectSides got resized=.*; expected"):
        ObjectSides(original=10.0, resized=side)
