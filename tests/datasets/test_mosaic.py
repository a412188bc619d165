from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querybox.data import DataSettings
from querybox.data.augment import augment
from querybox.data.mosaic import mix, mixup, mosaic, tile, warp
from querybox.data.phases import BatchAugmentation
from querybox.data.transforms import Sample

BLACK = (0.0, 0.0, 0.0)


def plain(height: int, width: int, value: int, box: list[float], label: int) -> Sample:
    """Return an image of one grey value with one object."""
    pixels = torch.full((3, height, width), value, dtype=torch.uint8)
    return Sample(pixels, torch.tensor([box]), torch.tensor([label]))


def marked(height: int, width: int, box: tuple[int, int, int, int]) -> Sample:
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    x0, y0, x1, y1 = box
    pixels[:, y0:y1, x0:x1] = 255
    return Sample(pixels, torch.tensor([box]).float(), torch.tensor([0]))


def extent(sample: Sample) -> list[int]:
    """Return the box around the bright pixels."""
    rows, columns = (sample.pixels[0] > 127).nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def test_four_images_are_tiled_in_halves_of_the_shape() -> None:
    samples = [
        plain(20, 40, 50, [0, 0, 40, 20], 0),  # as wide as two tiles
        plain(40, 10, 100, [2, 8, 10, 40], 1),  # as high as four
        plain(10, 20, 150, [5, 5, 10, 10], 2),
        plain(20, 40, 200, [10, 10, 30, 20], 3),
    ]
    tiled = tile(samples, (20, 40), stretch=False, fill=(7.0, 7.0, 7.0))
    assert tiled.pixels[0, [0, 9], [0, 19]].tolist() == [50, 50]
    # 40 x 10 pixels become 10 x 2.5, rounded to 2 columns; the rest of its quarter is filled.
    assert tiled.pixels[0, 5, 20:25].tolist() == [100, 100, 7, 7, 7]
    assert tiled.pixels[0, [10, 19], [0, 19]].tolist() == [150, 150]
    assert tiled.pixels[0, [10, 19], [20, 39]].tolist() == [200, 200]
    assert tiled.labels.tolist() == [0, 1, 2, 3]
    expected = [[0, 0, 20, 10], [20.4, 2, 22, 10], [5, 15, 10, 20], [25, 15, 35, 20]]
    torch.testing.assert_close(tiled.boxes_xyxy, torch.tensor(expected))

    stretched = tile(samples[:2], (20, 40), stretch=True, fill=(7.0, 7.0, 7.0))
    assert (stretched.pixels[:, :10, :20] == 50).all()
    assert (stretched.pixels[:, :10, 20:] == 100).all()
    assert (stretched.pixels[:, 10:] == 7).all()  # of images that cannot be read
    torch.testing.assert_close(stretched.boxes_xyxy, torch.tensor([[0.0, 0, 20, 10], [24, 2, 40, 10]]))


def test_warping_scales_and_translates_from_the_centre() -> None:
    sample = marked(40, 60, (10, 10, 30, 20))
    # x: 30 + (x - 30) / 2 + 4, y: 20 + (y - 20) / 2 - 3
    warped = warp(sample, 0.0, 0.5, np.array([4.0, -3.0]), BLACK)
    assert warped.boxes_xyxy.tolist() == [[24, 12, 34, 17]]
    assert extent(warped) == [24, 12, 34, 17]
    # x: 30 + (x - 30) * 1.5, y likewise: 0 to 30 and 5 to 20
    warped = warp(sample, 0.0, 1.5, np.array([0.0, 0.0]), BLACK)
    assert warped.boxes_xyxy.tolist() == [[0, 5, 30, 20]]
    assert extent(warped) == [0, 5, 30, 20]


def test_a_quarter_turn_moves_what_is_right_of_the_centre_below_it() -> None:
    sample = marked(40, 40, (30, 10, 40, 14))
    # (x, y) relative to the centre becomes (-y, x): x of 6 to 10, y of 10 to 20
    turned = warp(sample, 90.0, 1.0, np.array([0.0, 0.0]), BLACK)
    torch.testing.assert_close(turned.boxes_xyxy, torch.tensor([[26.0, 30.0, 30.0, 40.0]]))
    assert extent(turned) == [26, 30, 30, 40]


def test_a_rotated_box_is_that_around_its_corners() -> None:
    sample = marked(100, 100, (40, 40, 60, 60))
    turned = warp(sample, 10.0, 1.0, np.array([0.0, 0.0]), BLACK)
    half = 10 * (np.cos(np.radians(10)) + np.sin(np.radians(10)))  # 11.585
    expected = torch.tensor([[50 - half, 50 - half, 50 + half, 50 + half]]).float()
    torch.testing.assert_close(turned.boxes_xyxy, expected)
    assert extent(turned) == pytest.approx(expected[0].tolist(), abs=1)


def test_boxes_are_clipped_to_the_mosaic_and_dropped_outside() -> None:
    sample = Sample(
        torch.zeros(3, 40, 40, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 10, 10], [0, 20, 40, 21], [30, 30, 40, 40]]),
        torch.tensor([4, 5, 6]),
    )
    moved = warp(sample, 0.0, 1.0, np.array([15.0, 15.0]), (1.0, 2.0, 3.0))
    assert moved.labels.tolist() == [4, 5]
    assert moved.boxes_xyxy.tolist() == [[15, 15, 25, 25], [15, 35, 40, 36]]
    assert moved.pixels[:, 3, 3].tolist() == [1, 2, 3]
    shrunk = warp(sample, 0.0, 0.9, np.array([0.0, 0.0]), BLACK)
    assert shrunk.labels.tolist() == [4, 6]  # the second is 0.9 pixels high


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_the_objects_of_a_mosaic_are_in_their_boxes(seed: int, stretch: bool) -> None:
    samples = [marked(60, 90, (20, 20, 60, 50)), *[plain(50, 50, 0, [0, 0, 9, 9], 1)] * 3]
    made = mosaic(samples, (80, 120), np.random.default_rng(seed), stretch=stretch, fill=BLACK)
    assert made.pixels.shape == (3, 80, 120)
    white = made.boxes_xyxy[made.labels == 0]
    if not len(white):
        return
    left, top, right, bottom = white[0].tolist()
    assert 0 <= left < right <= 120
    assert 0 <= top < bottom <= 80
    if (made.pixels[0] > 127).any():
        x0, y0, x1, y1 = extent(made)
        assert x0 >= left - 1
        assert y0 >= top - 1
        assert x1 <= right + 1
        assert y1 <= bottom + 1


def test_mosaics_are_drawn_with_their_probability_and_phase_and_not_cropped_besides() -> None:
    sample = plain(40, 60, 255, [0.0, 0, 60, 40], 0)
    other = plain(60, 40, 255, [0.0, 0, 40, 60], 1)
    data = DataSettings(image_size=32, scales=(32,), mosaic=0.5, iou_crop=1.0, crop=1.0, multi_scale=0)

    def labels(batch: BatchAugmentation, seed: int) -> set[int]:
        made = augment(sample, data, np.random.default_rng(seed), batch, draw=lambda: other, fill=BLACK)
        if 1 in made.labels:
            assert made.pixels.shape == (3, 32, 48)  # of the first image
        return set(made.labels.tolist())

    seen = [labels(BatchAugmentation(), seed) for seed in range(200)]
    assert sum(1 in each for each in seen) / 200 == pytest.approx(0.5, abs=0.1)
    assert not any(1 in labels(BatchAugmentation(mosaic=False), seed) for seed in range(50))


def test_mixup_is_the_weighted_mean_with_the_one_before() -> None:
    samples = [plain(2, 3, value, [0.0, 0, 1, 1], label) for label, value in enumerate((10, 100, 200))]
    mixed = mixup(samples, 0.55)
    # 0.55 * 10 + 0.45 * 200, 0.55 * 100 + 0.45 * 10, 0.55 * 200 + 0.45 * 100
    assert [int(one.pixels[0, 0, 0]) for one in mixed] == [96, 60, 155]
    assert [one.labels.tolist() for one in mixed] == [[0, 2], [1, 0], [2, 1]]
    assert all(one.boxes_xyxy.tolist() == [[0, 0, 1, 1]] * 2 for one in mixed)


def test_images_of_different_sizes_are_mixed_on_black() -> None:
    mixed = mix(plain(2, 4, 100, [1.0, 0, 4, 2], 0), plain(3, 2, 200, [0.0, 1, 2, 3], 1), 0.5)
    assert mixed.pixels[0].tolist() == [[150, 150, 50, 50], [150, 150, 50, 50], [100, 100, 0, 0]]
    assert mixed.boxes_xyxy.tolist() == [[1, 0, 4, 2], [0, 1, 2, 3]]
