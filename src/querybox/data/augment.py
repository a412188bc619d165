"""Augmentation of training images: which transforms an image goes through, and in which order."""

from __future__ import annotations

import numpy as np

from querybox.data.color import distort_colors, jitter_colors
from querybox.data.settings import DataSettings
from querybox.data.transforms import Sample, crop, flip, resize_sample, resized_shape
from querybox.data.windows import Fill, Window, iou_crop, show, zoom_out
from querybox.structures import IMAGENET_MEAN, Resizing


def augment(
    sample: Sample, settings: DataSettings, rng: np.random.Generator, fill: Fill = IMAGENET_MEAN
) -> Sample:
    """Augment a training image.

    The colours are distorted, and the image is flipped, each with its probability. Zoom-out and IoU crop follow; an
    image that neither of them has changed is cropped with probability `crop`, as DETR does. Then its short side is
    resized to one of `scales`; with `stretch` its height, and the width in proportion to `long_side`. An image whose
    objects are all dropped is a negative example.

    Args:
        sample: The image and its objects.
        settings: Sizes and probabilities.
        rng: Source of all random numbers.
        fill: RGB value, 0-255, of pixels without an image.
    """
    sizes = settings.sizes()
    if settings.photometric:
        sample = sample._replace(pixels=distort_colors(sample.pixels, settings.photometric, rng))
    sample = flip(sample, settings, rng)
    window = choose_window(sample, settings, rng)
    is_whole = window == Window.of(sample.pixels)
    if is_whole and rng.random() < settings.crop:
        sample = crop(sample, sizes, rng)
    scale = int(rng.choice(sizes.scales))
    long_side, resizing = output_size(scale, settings)
    if is_whole:
        sample = resize_sample(sample, scale, long_side, resizing)
    else:
        shape = resized_shape(window.height, window.width, scale, long_side, resizing)
        sample = show(sample, window, shape, fill)
    if settings.color_jitter:
        sample = sample._replace(pixels=jitter_colors(sample.pixels, settings.color_jitter, rng))
    return sample


def choose_window(sample: Sample, settings: DataSettings, rng: np.random.Generator) -> Window:
    """Return the window through which an image is seen: zoomed out and cropped, each with its probability."""
    window = Window.of(sample.pixels)
    if settings.zoom_out and rng.random() < settings.zoom_out:
        window = zoom_out(window, rng)
    if settings.iou_crop and rng.random() < settings.iou_crop:
        window = iou_crop(window, sample.boxes_xyxy, rng)
    return window


def output_size(scale: int, settings: DataSettings) -> tuple[int, Resizing]:
    """Return the long side, or with `stretch` the width, that belongs to a scale, and how images are resized to it."""
    sizes = settings.sizes()
    if settings.stretch:
        return max(1, round(scale * sizes.long_side / sizes.short_side)), "stretch"
    return sizes.long_side, "querybox"
