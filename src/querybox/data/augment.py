"""Augmentation of training images: which transforms an image goes through, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from querybox.data.color import distort_colors, jitter_colors
from querybox.data.copy_paste import copy_paste
from querybox.data.mosaic import mosaic
from querybox.data.phases import BatchAugmentation
from querybox.data.settings import DataSettings
from querybox.data.transforms import Sample, crop, flip, resize_sample, resized_shape
from querybox.data.windows import Fill, Window, iou_crop, show, zoom_out
from querybox.structures import IMAGENET_MEAN


def augment(
    sample: Sample,
    settings: DataSettings,
    rng: np.random.Generator,
    batch: BatchAugmentation = BatchAugmentation(),  # noqa: B008 - immutable
    *,
    draw: Callable[[], Sample | None] | None = None,
    fill: Fill = IMAGENET_MEAN,
) -> Sample:
    """Augment a training image, and resize it to the size that the model is trained with.

    Objects of another image may be pasted into an image, and it may become one of four in a mosaic. Its colours are
    distorted, and it is flipped, each with its probability. All but mosaics are then zoomed out, cropped and resized;
    see `frame`. An image whose objects are all dropped is a negative example.

    Args:
        sample: The image and its objects.
        settings: Sizes and probabilities.
        rng: Source of all random numbers.
        batch: What the images of the batch have in common.
        draw: Returns another image of the dataset, for copy-paste and mosaics, or None if it cannot be read; None for
            neither.
        fill: RGB value, 0-255, of pixels without an image.
    """
    draw = draw if batch.mosaic else None
    if draw is not None and settings.copy_paste and rng.random() < settings.copy_paste:
        source = draw()
        sample = sample if source is None else copy_paste(sample, source, settings, rng)
    in_mosaic = draw is not None and settings.mosaic > 0 and rng.random() < settings.mosaic
    if in_mosaic:
        assert draw is not None
        others = [draw() for _ in range(3)]
        height, width = output_shape(Window.of(sample.pixels), settings, rng, batch)
        samples = [sample, *(other for other in others if other is not None)]
        sample = mosaic(samples, (max(2, height), max(2, width)), rng, stretch=settings.stretch, fill=fill)
    if batch.strong and settings.photometric:
        sample = sample._replace(pixels=distort_colors(sample.pixels, settings.photometric, rng))
    sample = flip(sample, settings, rng)
    if not in_mosaic:
        sample = frame(sample, settings, rng, batch, fill)
    if settings.color_jitter:
        sample = sample._replace(pixels=jitter_colors(sample.pixels, settings.color_jitter, rng))
    return sample


def frame(
    sample: Sample, settings: DataSettings, rng: np.random.Generator, batch: BatchAugmentation, fill: Fill
) -> Sample:
    """Zoom out, crop and resize a training image.

    An image that neither zoom-out nor IoU crop has changed is cropped with probability `crop`, as DETR does. The short
    side is resized to the size of the batch or to one of `scales`; with `stretch` the height, and the width in
    proportion to `long_side`.

    Args:
        sample: The image and its objects.
        settings: Sizes and probabilities.
        rng: Source of all random numbers.
        batch: What the images of the batch have in common.
        fill: RGB value, 0-255, of pixels without an image.
    """
    window = Window.of(sample.pixels)
    if batch.strong:
        window = choose_window(window, sample.boxes_xyxy, settings, rng)
    if window != Window.of(sample.pixels):
        return show(sample, window, output_shape(window, settings, rng, batch), fill)
    if rng.random() < settings.crop:
        sample = crop(sample, settings.sizes(), rng)
    return resize_sample(sample, output_shape(Window.of(sample.pixels), settings, rng, batch))


def choose_window(
    window: Window, boxes_xyxy: Float[Tensor, "G 4"], settings: DataSettings, rng: np.random.Generator
) -> Window:
    """Return the window through which an image is seen: zoomed out and cropped, each with its probability."""
    if settings.zoom_out and rng.random() < settings.zoom_out:
        window = zoom_out(window, rng)
    if settings.iou_crop and rng.random() < settings.iou_crop:
        window = iou_crop(window, boxes_xyxy, rng)
    return window


def output_shape(
    window: Window, settings: DataSettings, rng: np.random.Generator, batch: BatchAugmentation
) -> tuple[int, int]:
    """Return the (height, width) that a window is resized to: for the size of the batch, or one of `scales`."""
    sizes = settings.sizes()
    scale = int(rng.choice(sizes.scales)) if batch.scale is None else batch.scale
    if settings.stretch:
        return scale, max(1, round(scale * sizes.long_side / sizes.short_side))
    return resized_shape(window.height, window.width, scale, sizes.long_side)
