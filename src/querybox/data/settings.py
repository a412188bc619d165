"""The settings of the data: where it is, how large images are made, how they are varied, how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

from querybox.settings import Settings

Pixels = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
MAX_CORRUPT = 0.05
"""Share of a dataset's images that may be unreadable unless something else is set."""

# The sizes of the DETR paper belong to this short side; at another image size they scale in proportion.
_PAPER_SIZE = 800
_PAPER_LONG_SIDE = 1333
_PAPER_SCALES = tuple(range(480, 801, 32))
_PAPER_CROP_SCALES = (400, 500, 600)
_PAPER_CROP_RANGE = (384, 600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that the settings come to, in pixels."""

    short_side: int
    long_side: int
    scales: tuple[int, ...]
    crop_scales: tuple[int, ...]
    crop_range: tuple[int, int]


class DataSettings(Settings):
    """Where the data is and how images reach the model.

    `image_size` alone scales everything: sizes that are not set keep the proportions of the DETR paper.
    """

    train: str | None = None
    """Dataset to train on: a COCO file, or a COCO, Pascal VOC or YOLO folder."""
    train_split: str | None = None
    """Which split of `train`; needed only where it has several and none is called train."""
    val: str | None = None
    """Dataset to evaluate on; left out, the val split of `train`, where it has one."""
    val_split: str | None = None
    """Which split of `val`; needed only where it has several and none is called val."""
    image_size: Pixels = _PAPER_SIZE
    """Short side of an image at inference, pixels."""
    long_side: Pixels | None = None
    """Most pixels of the long side; the short side gets smaller where it would exceed them. 1333 at 800."""
    scales: tuple[Pixels, ...] | None = Field(default=None, min_length=1)
    """Short sides to choose from in training. 480, 512 ... 800 at 800."""
    crop_scales: tuple[Pixels, ...] | None = Field(default=None, min_length=1)
    """Short sides to choose from before a crop. 400, 500, 600 at 800."""
    crop_range: tuple[Pixels, Pixels] | None = None
    """Least and most pixels of each side of a crop. 384 to 600 at 800."""
    crop: Probability = 0.5
    """Probability of cropping."""
    horizontal_flip: Probability = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: Probability = 0.0
    """Probability of mirroring top and bottom: for images without an up, from microscopes or from the air."""
    color_jitter: Probability = 0.0
    """How far brightness, contrast and saturation may vary: each by a factor in 1 - this to 1 + this."""
    workers: int = Field(default=2, ge=0)
    """Processes that load images; 0 loads in the training process."""
    cache: bool = False
    """Keep all decoded training images in memory, 3 bytes a pixel; saves decoding them every epoch."""
    max_corrupt: Probability = MAX_CORRUPT
    """Share of the images (0-1) that may be missing or broken; they are left out. With more, a run does not start, and
    one under way ends."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        sizes = self.sizes()
        if sizes.crop_range[0] > sizes.crop_range[1]:
            raise ValueError(f"crop_range is {sizes.crop_range}; expected its least pixels first")
        if sizes.long_side < sizes.short_side:
            raise ValueError(
                f"long_side is {sizes.long_side}; expected at least image_size, {sizes.short_side}"
            )
        return self

    def sizes(self) -> Sizes:
        """Return all sizes, those that were left out in proportion to `image_size`."""
        return Sizes(
            short_side=self.image_size,
            long_side=self.long_side or self._scaled(_PAPER_LONG_SIDE),
            scales=self.scales or tuple(map(self._scaled, _PAPER_SCALES)),
            crop_scales=self.crop_scales or tuple(map(self._scaled, _PAPER_CROP_SCALES)),
            crop_range=self.crop_range
            or (self._scaled(_PAPER_CROP_RANGE[0]), self._scaled(_PAPER_CROP_RANGE[1])),
        )

    def _scaled(self, pixels: int) -> int:
        return max(1, round(pixels * self.image_size / _PAPER_SIZE))
