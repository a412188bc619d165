"""Colour augmentation of training images."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageStat
from torch import Tensor

from querybox.pixels import as_pixels

BRIGHTNESS = 0.875, 1.125
CONTRAST = 0.5, 1.5
SATURATION = 0.5, 1.5
HUE = -0.05, 0.05
"""Ranges of the photometric distortion of SSD (Liu et al. 2016) and RT-DETR, as in torchvision's
`RandomPhotometricDistort`: factors; for the hue parts of a full turn."""
LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luma of ITU-R BT.601, the grey value of Pillow and torchvision."""


def jitter_colors(
    pixels: UInt8[Tensor, "3 H W"], strength: float, rng: np.random.Generator
) -> UInt8[Tensor, "3 H W"]:
    """Scale brightness, contrast and saturation by factors in 1 - `strength` to 1 + `strength`."""
    # Its import takes 1.5 s, and all other distortions do without.
    from torchvision.transforms.v2 import functional as F

    for adjust in (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation):
        pixels = adjust(pixels, float(rng.uniform(1 - strength, 1 + strength)))
    return pixels


class ColorTransform:
    """An affine function of RGB values, composed of photometric distortions of one image.

    As all of them are affine, they are computed in a single pass over the image, and values are rounded and clipped to
    0-255 once instead of after every distortion.

    Attributes:
        matrix: Applied to the RGB values.
        offset: Added to the result.
    """

    matrix: Float[np.ndarray, "3 3"]
    offset: Float[np.ndarray, " 3"]

    def __init__(self) -> None:
        self.matrix, self.offset = np.eye(3), np.zeros(3)

    def then(self, matrix: Float[np.ndarray, "3 3"], offset: float = 0.0) -> None:
        """Append an affine function that adds `offset` to every channel."""
        self.matrix, self.offset = matrix @ self.matrix, matrix @ self.offset + offset

    def scale_brightness(self, factor: float) -> None:
        """Scale all values."""
        self.then(factor * np.eye(3))

    def scale_contrast(self, factor: float, mean: Float[np.ndarray, " 3"]) -> None:
        """Scale differences from the mean grey value of the image.

        Args:
            factor: The factor.
            mean: Mean RGB value of the original image.
        """
        grey = LUMA @ (self.matrix @ mean + self.offset)
        self.then(factor * np.eye(3), (1 - factor) * grey)

    def scale_saturation(self, factor: float) -> None:
        """Scale differences from the grey value of each pixel."""
        self.then(factor * np.eye(3) + (1 - factor) * np.ones((3, 1)) * LUMA)

    def shift_hue(self, turn: float) -> None:
        """Rotate colours about the axis of greys, by a part of a full turn; 1/3 turns red to green.

        A shift in HSV, which is not linear, is the same for sixths of a turn and nearly the same for small shifts.
        """
        cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
        cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        self.then(cos * np.eye(3) + (1 - cos) / 3 * np.ones((3, 3)) + sin * cross)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the transformed RGB image."""
        rows = np.column_stack([self.matrix, self.offset])
        return image.convert("RGB", tuple(rows.ravel().tolist()))


def distort_colors(
    pixels: UInt8[Tensor, "3 H W"], probability: float, rng: np.random.Generator
) -> UInt8[Tensor, "3 H W"]:
    """Apply each of SSD's photometric distortions with this probability; see `random_colors`."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return as_pixels(random_colors(np.array(ImageStat.Stat(image).mean), probability, rng)(image))


def random_colors(
    mean: Float[np.ndarray, " 3"], probability: float, rng: np.random.Generator
) -> ColorTransform:
    """Return a random composition of SSD's photometric distortions.

    They are brightness, contrast, saturation, hue and a permutation of the channels, in this order; in half of the
    cases contrast comes after hue.

    Args:
        mean: Mean RGB value of the image.
        probability: Probability of each distortion.
        rng: Source of all random numbers.
    """
    brightness, contrast, saturation, hue = (
        float(rng.uniform(*limits)) if rng.random() < probability else None
        for limits in (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    )
    contrast_last = rng.random() < 0.5
    order = rng.permutation(3) if rng.random() < probability else None

    colors = ColorTransform()
    if brightness is not None:
        colors.scale_brightness(brightness)
    if contrast is not None and not contrast_last:
        colors.scale_contrast(contrast, mean)
    if saturation is not None:
        colors.scale_saturation(saturation)
    if hue is not None:
        colors.shift_hue(hue)
    if contrast is not None and contrast_last:
        colors.scale_contrast(contrast, mean)
    if order is not None:
        colors.then(np.eye(3)[order])
    return colors
