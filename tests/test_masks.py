"""Masks have the bits, areas, boxes and IoUs of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from querybox import masks, polygons
from querybox.errors import DataError
from querybox.masks import Rle, compress, decompress, mask_iou, resized
from querybox.polygons import Polygons, fill

Pixels = Bool[np.ndarray, "H W"]


def random_mask(rng: np.random.Generator) -> Pixels:
    """Return noise or rectangles, of a small random size."""
    height, width = rng.integers(1, 40, 2)
    if rng.random() < 0.5:
        return rng.random((height, width)) < rng.choice([0.0, 0.02, 0.3, 0.9, 1.0])
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(3):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] ^= True
    return mask


def encoded(mask: Pixels) -> dict[str, object]:
    """Return a mask encoded by pycocotools."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_polygon(rng: np.random.Generator, size: tuple[int, int]) -> list[float]:
    """Return vertices in and around an image: anywhere, on a star, with whole numbers or fractions."""
    height, width = size
    vertices = int(rng.integers(3, 30))
    points = rng.uniform(-0.3, 1.3, (vertices, 2)) * [width, height]
    if rng.random() < 0.5:
        angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
        radius = rng.uniform(0.1, 0.6, (vertices, 1)) * [width, height]
        points = np.stack([np.cos(angle), np.sin(angle)], 1) * radius + rng.uniform(0, 1, 2) * [width, height]
    return np.round(points, int(rng.choice([0, 1, 2, 9]))).ravel().tolist()


@pytest.mark.parametrize("seed", range(50))
def test_masks_are_those_of_pycocotools(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    expected = encoded(mask)
    rle = Rle.of(mask)
    assert rle.counts == expected["counts"]
    assert rle.to_coco() == {"size": expected["size"], "counts": rle.counts.decode()}
    np.testing.assert_array_equal(rle.mask(), mask)
    assert rle.area == coco_mask.area(expected)
    x, y, width, height = coco_mask.toBbox(expected).tolist()
    assert rle.box_xyxy == ((x, y, x + width, y + height) if mask.any() else None)
    assert compress(decompress(rle.counts)) == rle.counts
    monkeypatch.setattr(masks, "_CHUNK", 3)
    assert compress(decompress(rle.counts)) == rle.counts


@pytest.mark.parametrize("seed", range(80))
def test_polygons_are_rasterised_as_by_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 200, 2))
    outlines = [random_polygon(rng, (height, width)) for _ in range(int(rng.integers(1, 4)))]
    parts = coco_mask.frPyObjects(outlines, height, width)
    for polygon, part in zip(outlines, parts, strict=True):
        assert Rle.of_polygons(Polygons.of([polygon]), (height, width)).counts == part["counts"]
    rle = Rle.of_polygons(Polygons.of(outlines), (height, width))
    assert rle.counts == coco_mask.merge(parts)["counts"]


def test_a_polygon_of_ten_thousand_vertices_that_crosses_itself_is_that_of_pycocotools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polygon = np.random.default_rng(0).uniform(-300, 300, 20_000).tolist()
    expected = coco_mask.frPyObjects([polygon], 30, 40)[0]["counts"]
    for chunk in (polygons._CHUNK, 10_000):
        monkeypatch.setattr(polygons, "_CHUNK", chunk)
        assert Rle.of_polygons(Polygons.of([polygon]), (30, 40)).counts == expected


def test_vertices_that_cannot_be_rasterised_step_by_step_take_no_memory() -> None:
    rle = Rle.of_polygons(Polygons.of([[-1e12, -1e12, 1e12, -1e12, 1e12, 1e12, -1e12, 1e12]]), (30, 40))
    assert rle.area == 30 * 40


@pytest.mark.parametrize(
    "invalid",
    [[], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, 3, 4, 5, np.nan]], [[1, 2, 3, 4, np.inf, 6]]],
)
def test_polygons_without_an_inside_are_named(invalid: list[list[float]]) -> None:
    with pytest.raises(DataError, match="expected at least"):
        Polygons.of(invalid)


def test_polygons_are_packed_without_loss() -> None:
    for far in (100.0, 100_000.0):  # 16 and 32 bits
        packed = Polygons.of([[0, 0, 10.2, 0, 10, far], [1, 1, 2, 1, 2, 2, 1, 2]])
        assert [len(vertices) for vertices in packed.vertices()] == [3, 4]
        assert list(packed.box_xyxy) == [0, 0, 10.2, far]
        assert packed.vertices()[0].tolist() == [[0, 0], [51, 0], [50, 5 * far]]


@pytest.mark.parametrize("seed", range(30))
def test_outlines_are_rasterised_to_the_same_mask(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    height, width = mask.shape
    outlines = Rle.of(mask).polygons()
    assert bool(outlines) == mask.any()
    if outlines:
        assert Rle.of_polygons(Polygons.of(outlines), (height, width)) == Rle.of(mask)
        merged = coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))
        assert merged["counts"] == encoded(mask)["counts"]


def test_outlines_by_hand() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2:5] = True
    (outline,) = Rle.of(mask).polygons()
    assert sorted(zip(outline[::2], outline[1::2], strict=True)) == [(2, 1), (2, 3), (5, 1), (5, 3)]


@pytest.mark.parametrize("seed", range(30))
def test_the_iou_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 30, 2))
    masks, objects = ([rng.random(size) < rng.choice([0.0, 0.1, 0.8]) for _ in range(4)] for _ in range(2))
    crowd = rng.random(4) < 0.5
    expected = coco_mask.iou(list(map(encoded, masks)), list(map(encoded, objects)), crowd.tolist())
    actual = mask_iou(list(map(Rle.of, masks)), list(map(Rle.of, objects)), crowd)
    np.testing.assert_array_equal(actual, expected)


def test_the_iou_of_no_masks_is_empty() -> None:
    one = Rle.of(np.ones((2, 3), dtype=bool))
    assert mask_iou([], [one], np.array([False])).shape == (0, 1)
    assert mask_iou([one], [], np.zeros(0, dtype=bool)).shape == (1, 0)


def test_masks_of_other_sizes_are_named() -> None:
    one, other = (Rle.of(np.ones(size, dtype=bool)) for size in ((2, 3), (3, 2)))
    with pytest.raises(DataError, match=r"sizes \[\(2, 3\), \(3, 2\)\]; expected the same"):
        mask_iou([one], [other], np.array([False]))


@pytest.mark.parametrize("counts", [b"", b"oooooooooooo", b"4\xe9", b"P", b"O", b"4 5"])
def test_malformed_run_lengths_are_named(counts: bytes) -> None:
    with pytest.raises(DataError, match="malformed; expected COCO's compressed RLE"):
        decompress(counts)


def test_run_lengths_of_another_image_are_named() -> None:
    with pytest.raises(DataError, match=r"add up to 12 pixels; expected those of 5x5"):
        Rle((5, 5), Rle.of(np.ones((3, 4), dtype=bool)).counts).mask()


def test_a_polygon_that_touches_no_column_is_empty() -> None:
    assert not len(fill(Polygons.of([[1.1, 1, 1.2, 5, 1.3, 2]]).vertices()[0], (8, 8)))


def test_polygons_are_moved_by_whole_pixels() -> None:
    polygons = Polygons.of([[3.3, 4.1, 20.7, 5.5, 9.9, 18.2], [22, 1, 30, 1, 30, 9.4, 22, 9.4]])
    whole = Rle.of_polygons(polygons, (40, 50)).mask()
    for right, down in ((0, 0), (7, 3), (-5, -4), (-25, 12)):
        expected = np.zeros((40, 50), dtype=bool)
        ys, xs = whole.nonzero()
        kept = (ys + down >= 0) & (ys + down < 40) & (xs + right >= 0) & (xs + right < 50)
        expected[ys[kept] + down, xs[kept] + right] = True
        found = Rle.of_polygons(polygons.moved(right, down), (40, 50)).mask()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3, 4), (20, 30), (25, 10), (50, 61)])
def test_a_mask_is_resized_the_same_without_being_decoded(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    mask = Rle.of(np.random.default_rng(0).random((20, 30)) < 0.5)
    decoded = resized(mask, mask.size, shape)
    monkeypatch.setattr(masks, "_SPARSE", 0)
    np.testing.assert_array_equal(resized(mask, mask.size, shape), decoded)
