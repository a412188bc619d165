"""Data settings: datasets, image sizes, augmentation and loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from querybox.arguments import MAX_AREA, is_range
from querybox.settings import PathText, Settings
from querybox.structures import PixelRange

Pixels = Annotated[int, Field(ge=1, le=2**13)]
Probability = Annotated[float, Field(ge=0, le=1)]
Depth = Annotated[int, Field(ge=1, le=32)] | tuple[float, float]
"""A number of bits, or the values that become 0 and 255."""
NO_VALIDATION = "none"
"""Value of `data.val` that switches evaluation off."""
MAX_CORRUPT = 0.05
"""Default fraction of a dataset's images that may be unreadable."""

MIN_TILE, MAX_TILE = 32, 8192
"""Sides of tiles in pixels; the largest are decoded in 256 MiB."""
OVERLAP, MAX_OVERLAP = 0.2, 0.9
"""Overlap of neighbouring tiles by default, and at most, as a fraction of their side."""

# The sizes in the DETR paper, for this short side; they are scaled in proportion to `image_size`.
_PAPER_SIZE = 800
_PAPER_LONG_SIDE = 1333
_PAPER_SCALES = tuple(range(480, 801, 32))
_PAPER_CROP_SCALES = (400, 500, 600)
_PAPER_CROP_RANGE = (384, 600)
# Sizes of multi-scale batches in RT-DETR, relative to the image size, and the step between them in pixels.
_MULTI_SCALE = (0.75, 1.25)
_STRIDE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """All image sizes, resolved, in pixels."""

    short_side: int
    long_side: int
    scales: tuple[int, ...]
    crop_scales: tuple[int, ...]
    crop_range: tuple[int, int]

    @property
    def decoded_side(self) -> int:
        """Short side that training images are decoded with at least: twice the largest that they are resized to."""
        return 2 * max(*self.scales, *self.crop_scales)


class DataSettings(Settings):
    """Datasets, image sizes, augmentation and loading.

    All sizes scale with `image_size`: those that are not set keep the proportions of the DETR paper.
    """

    train: PathText | None = None
    """Dataset to train on: a folder, a file that describes a dataset, or the URL of shards."""
    train_split: str | None = None
    """Split of `train`; required only if it has several and none is called train."""
    val: PathText | None = None
    """Dataset to evaluate on; by default the val split of `train`, or, if it has none, a part of it that is held out.
    `none` trains on all images and does not evaluate."""
    val_split: str | None = None
    """Split of `val`; required only if it has several and none is called val."""
    allow_network: bool = False
    """Open the URLs of shards that a dataset is, or that its file has. Without it nothing connects to a network."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the images of `train` that is held out if there is no other validation data."""
    tile: Annotated[int, Field(ge=MIN_TILE, le=MAX_TILE)] | None = None
    """Side in pixels of the tiles of large images that are trained on in place of the images, and in which images are
    evaluated; see `querybox.data.tiled`. None for no tiles."""
    overlap: Annotated[float, Field(ge=0, le=MAX_OVERLAP)] = OVERLAP
    """Minimum overlap of neighbouring tiles, as a fraction of their side."""
    image_size: Pixels = _PAPER_SIZE
    """Short side of images at inference, in pixels."""
    stretch: bool = False
    """Stretch images to a height of `image_size` and a width of `long_side` instead of keeping their aspect ratio, as
    RT-DETR does."""
    long_side: Annotated[int, Field(ge=1)] | None = None
    """Maximum long side in pixels; the short side is reduced if necessary. 1333 for image_size 800. With `stretch` the
    width, by default `image_size`."""
    scales: tuple[Pixels, ...] | None = Field(default=None, min_length=1)
    """Short sides to choose from in training. 480, 512 ... 800 for image_size 800; `image_size` alone with `stretch`,
    so that all images of a batch have the same size; see also `multi_scale`."""
    crop_scales: tuple[Pixels, ...] | None = Field(default=None, min_length=1)
    """Short sides to choose from before cropping. 400, 500, 600 for image_size 800."""
    crop_range: tuple[Pixels, Pixels] | None = None
    """Minimum and maximum side of a crop in pixels. 384 to 600 for image_size 800."""
    crop: Probability = 0.5
    """Probability of a random crop."""
    horizontal_flip: Probability = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Probability = 0.0
    """Probability of a vertical flip, for images without a fixed orientation, such as microscopy or aerial images."""
    color_jitter: Probability = 0.0
    """Strength s of colour jitter: brightness, contrast and saturation are scaled by factors in 1 - s to 1 + s."""
    photometric: Probability = 0.0
    """Probability of each of the photometric distortions of SSD: brightness (a factor of 0.875 to 1.125), contrast and
    saturation (0.5 to 1.5), hue (-18 to 18 degrees) and a permutation of the channels. 0.5 in RT-DETR."""
    zoom_out: Probability = 0.0
    """Probability of placing an image on a canvas with sides up to four times as long, so that objects become smaller.
    0.5 in RT-DETR."""
    iou_crop: Probability = 0.0
    """Probability of SSD's random crop, which has a minimum IoU, 0 to 0.9, with an object. 0.8 in RT-DETR. `crop` then
    applies to images that neither this nor `zoom_out` has changed."""
    mosaic: Probability = 0.0
    """Probability of a mosaic of the image and three others at half of their size, which is rotated by up to 10
    degrees, translated by up to a tenth of the sides and scaled by 0.5 to 1.5. Mosaics are not zoomed out or cropped.
    0.5 in DEIM."""
    mixup: Probability = 0.0
    """Probability of a batch in which every image is mixed with another one, at weights of 0.45 to 0.55, and has the
    objects of both. 0.5 in DEIM."""
    copy_paste: Probability = 0.0
    """Probability of pasting objects of another image into an image by their masks, as in Simple Copy-Paste. Images of
    which an object has no mask neither give nor receive objects."""
    multi_scale: int = Field(default=0, ge=0, le=100)
    """If positive, all images of a batch are resized to the same one of `scales`, among which `image_size` counts this
    many times: 3 in RT-DETR. `scales` are then by default the multiples of 32 from 0.75 to 1.25 times `image_size`."""
    strong_from: Probability = 0.0
    """Share of the run (0-1) after which photometric distortion, zoom-out, IoU crop, mosaic, copy-paste and mixup
    begin. 4 of 58 epochs in DEIM."""
    strong_until: Probability = 1.0
    """Share of the run at which these and multi-scale batches end: 120 of 132 epochs in D-FINE S. With
    `train.max_time` it is that of the time, if this is ahead."""
    mosaic_until: Probability = 1.0
    """Share of the run at which mosaic, copy-paste and mixup end: a half in DEIM."""
    transform: str | None = None
    """Description of the transform that was given to `querybox.train` for augmentation, if any; set by it."""
    shuffle_shards: int | None = Field(default=None, ge=1, le=2**20)
    """Number of shards, or row groups of Parquet files, whose images are shuffled together in an epoch, before the next
    ones are read; which these are differs in each epoch. None shuffles the images of all shards, and of as many row
    groups as can be held in memory."""
    workers: int = Field(default=2, ge=0, le=1024)
    """Number of processes that load images; 0 to load them in the training process. By default not more than there are
    CPUs."""
    cache: bool = False
    """Keep all decoded training images in memory (3 bytes per pixel) instead of decoding them every epoch. JPEGs whose
    sides are at least four times those needed are decoded, and kept, at 1/2, 1/4 or 1/8 of their size, except with
    `tile`."""
    depth: Depth | None = None
    """Pixel values of images with more than 8 bits: their number of bits, or the two values that become 0 and 255. If
    it is not set, it is determined from the training images; see `querybox.training.depth`."""
    max_corrupt: Probability = MAX_CORRUPT
    """Fraction of the images (0-1) that may be missing or corrupt; they are excluded. With more, training does not
    start, or stops."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes = self.sizes()
        if sizes.crop_range[0] > sizes.crop_range[1]:
            raise ValueError(f"crop_range is {sizes.crop_range}; expected the minimum first")
        # An image_size that is not set may become that of the recipe, the data or the weights, and is then checked.
        is_known = "image_size" in self.model_fields_set
        if is_known and sizes.long_side < sizes.short_side and not self.stretch:
            raise ValueError(
                f"long_side is {sizes.long_side}; expected at least image_size, {sizes.short_side}: set a smaller "
                "image_size, too"
            )
        if sizes.short_side * sizes.long_side > MAX_AREA:
            raise ValueError(
                f"image_size is {sizes.short_side} and long_side {sizes.long_side}; expected a product of at most "
                f"{MAX_AREA:,} pixels"
            )
        if self.pixel_range is not None and not is_range(self.pixel_range):
            raise ValueError(
                f"depth is {self.depth}; expected a number of bits, or two numbers, the lower first"
            )
        if self.strong_from > self.strong_until:
            raise ValueError(
                f"strong_from is {self.strong_from:g} and strong_until {self.strong_until:g}; expected the smaller one "
                "first"
            )
        return self

    @property
    def pixel_range(self) -> PixelRange | None:
        """The values that become 0 and 255 in images with more than 8 bits; see `Preprocessing.pixel_range`."""
        return (0.0, 2.0**self.depth - 1) if isinstance(self.depth, int) else self.depth

    def sizes(self) -> Sizes:
        """Return all sizes; those that are not set are scaled in proportion to `image_size`."""
        return Sizes(
            short_side=self.image_size,
            long_side=self.long_side or (self.image_size if self.stretch else self._scaled(_PAPER_LONG_SIDE)),
            scales=self._scales(),
            crop_scales=self.crop_scales or tuple(map(self._scaled, _PAPER_CROP_SCALES)),
            crop_range=self.crop_range
            or (self._scaled(_PAPER_CROP_RANGE[0]), self._scaled(_PAPER_CROP_RANGE[1])),
        )

    def _scales(self) -> tuple[int, ...]:
        if self.multi_scale:
            low, high = (int(factor * self.image_size / _STRIDE) * _STRIDE for factor in _MULTI_SCALE)
            scales = self.scales or range(max(low, _STRIDE), high + 1, _STRIDE)
            return tuple(sorted({*scales, self.image_size}))
        if self.scales:
            return self.scales
        return (self.image_size,) if self.stretch else tuple(map(self._scaled, _PAPER_SCALES))

    def _scaled(self, pixels: int) -> int:
        return max(1, round(pixels * self.image_size / _PAPER_SIZE))
