from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from querybox.data.color import ColorTransform, distort_colors, random_colors
from querybox.pixels import as_pixels


@pytest.fixture
def photo() -> Tensor:
    """Smooth colours in 40-200, which no distortion below clips."""
    y, x = np.mgrid[:32, :48]
    channels = [120 + 60 * np.sin(x / 9), 120 + 60 * np.cos(y / 7), 120 + 60 * np.sin((x + y) / 11)]
    return as_pixels(np.stack(channels, 2).astype(np.uint8))


def transformed(pixels: Tensor, colors: ColorTransform) -> Tensor:
    return as_pixels(colors(Image.fromarray(pixels.permute(1, 2, 0).numpy())))


@pytest.mark.parametrize("factor", [0.875, 1.125])
def test_brightness_is_that_of_torchvision(photo: Tensor, factor: float) -> None:
    colors = ColorTransform()
    colors.scale_brightness(factor)
    expected = F.adjust_brightness(photo, factor)
    torch.testing.assert_close(transformed(photo, colors), expected, rtol=0, atol=1)  # which truncates


@pytest.mark.parametrize("factor", [0.5, 1.2])
def test_contrast_is_that_of_torchvision(photo: Tensor, factor: float) -> None:
    colors = ColorTransform()
    colors.scale_contrast(factor, photo.double().mean((1, 2)).numpy())
    expected = F.adjust_contrast(photo, factor)
    torch.testing.assert_close(transformed(photo, colors), expected, rtol=0, atol=1)


@pytest.mark.parametrize("factor", [0.5, 1.2])
def test_saturation_is_that_of_torchvision(photo: Tensor, factor: float) -> None:
    colors = ColorTransform()
    colors.scale_saturation(factor)
    expected = F.adjust_saturation(photo, factor)
    torch.testing.assert_close(transformed(photo, colors), expected, rtol=0, atol=1)


def test_a_third_of_a_turn_makes_red_green_and_greys_keep_their_hue() -> None:
    colors = ColorTransform()
    colors.shift_hue(1 / 3)
    image = torch.tensor([[[200, 90]], [[10, 90]], [[40, 90]]], dtype=torch.uint8)
    assert transformed(image, colors).tolist() == [[[40, 90]], [[200, 90]], [[10, 90]]]


def test_small_shifts_of_the_hue_are_nearly_those_of_hsv() -> None:
    for rgb in ((200, 60, 80), (90, 180, 70), (60, 80, 190), (180, 170, 60)):
        colors = ColorTransform()
        colors.shift_hue(0.05)
        image = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
        shifted = transformed(image, colors).flatten().tolist()
        before, after = (colorsys.rgb_to_hsv(*(value / 255 for value in color)) for color in (rgb, shifted))
        assert (after[0] - before[0] + 0.5) % 1 - 0.5 == pytest.approx(0.05, abs=0.015)


def test_distortions_are_composed_in_order_and_rounded_once() -> None:
    image = torch.tensor([[[100, 50]], [[20, 50]], [[240, 50]]], dtype=torch.uint8)
    colors = ColorTransform()
    colors.scale_brightness(1.125)  # 112.5, 22.5, 270: not clipped yet
    # Mean of (100 + 50, 20 + 50, 240 + 50) / 2 = (75, 35, 145); its grey is 59.5 before and 66.9375 after brightness.
    colors.scale_contrast(0.5, np.array([75.0, 35.0, 145.0]))
    expected = [
        [0.5 * 1.125 * value + 0.5 * 66.9375 for value in row] for row in ([100, 50], [20, 50], [240, 50])
    ]
    rounded = [[[int(value + 0.5) for value in row]] for row in expected]
    assert transformed(image, colors).tolist() == rounded == [[[90, 62]], [[45, 62]], [[168, 62]]]


def test_each_distortion_has_its_probability_and_range() -> None:
    mean = np.array([100.0, 110.0, 120.0])
    drawn = [random_colors(mean, 0.5, np.random.default_rng(seed)) for seed in range(4000)]
    identities = sum(np.array_equal(colors.matrix, np.eye(3)) for colors in drawn) / 4000
    # None of the first four (1/16), and no permutation or only the identity among six (1/2 + 1/2 / 6).
    assert identities == pytest.approx(1 / 16 * 7 / 12, abs=0.01)
    contrasts = [colors for colors in drawn if colors.offset.any()]
    assert len(contrasts) / 4000 == pytest.approx(0.5, abs=0.03)
    # All but brightness and contrast keep greys, so that the sum of each row is the product of their factors.
    factors = np.array([colors.matrix.sum(1).mean() for colors in contrasts])
    assert 0.5 * 0.875 <= factors.min() < 0.5
    assert 1.5 < factors.max() <= 1.5 * 1.125
    never = random_colors(mean, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(never.matrix, np.eye(3))


def test_the_same_seed_distorts_in_the_same_way(photo: Tensor) -> None:
    one, other = (distort_colors(photo, 1.0, np.random.default_rng(7)) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert (one != photo).any()
    torch.testing.assert_close(distort_colors(photo, 0.0, np.random.default_rng(7)), photo, rtol=0, atol=0)
