"""Training on tiles: a dataset whose images are the tiles of large images.

An object that a tile shows whole is trained on. So is one that is cut, up to the border, if at least `MIN_VISIBLE` of
it is visible; what is visible of others is a crowd region, not a target. Each object is whole in some tile unless it is
wider or higher than the overlap. If an image has such an object, it is trained on as a whole, too, as it is searched as
a whole in prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from torch import Tensor

from querybox.data.image import MAX_PIXELS
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.settings import DataSettings
from querybox.data.tiff import open_tiff
from querybox.data.tiling import Tiling, shown_whole
from querybox.data.transforms import resized_shape
from querybox.data.windows import Window
from querybox.masks import Region, Rle, rasterised
from querybox.pixels import as_pixels
from querybox.structures import PixelRange, Resizing
from querybox.text import counted

MIN_VISIBLE = 0.5
"""Minimum fraction of the area of an object, that of its mask if it is known, that is visible of a target."""
MIN_SIDE = 8
"""Minimum side (square root of the area) of a target in a whole image, in pixels of the resized image: that of a cell
of the finest feature map of most models."""


class TileRecord(ImageRecord):
    """A part of an image with its objects, in pixels of the part."""

    __slots__ = ("image", "window")

    def __init__(
        self,
        id: int,  # noqa: A002 - the attribute's name
        image: ImageRecord,
        window: Window,
        boxes_xyxy: Float64[np.ndarray, "G 4"],
        masks: Sequence[Region | None] | None,
        objects: Bool[np.ndarray, " N"],
        crowd: Bool[np.ndarray, " G"],
    ) -> None:
        """Create the record.

        Args:
            id: Its id, which differs from those of all other parts.
            image: The image.
            window: The part of it.
            boxes_xyxy: Corners of the visible parts of G objects in pixels of the part.
            masks: Their masks; None if they are not known.
            objects: Which of the N objects of the image they are.
            crowd: Which of them are not targets.
        """
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
        super().__init__(
            id=id,
            path=image.file,
            width=window.width,
            height=window.height,
            boxes_xyxy=boxes_xyxy,
            labels=image.labels[objects],
            crowd=crowd,
            areas=sides.prod(1),
            masks=masks,
        )
        self.image = image
        self.window = window

    @property
    def is_read_in_parts(self) -> bool:
        """Whether the image is too large to be decoded as a whole."""
        return self.image.height * self.image.width > MAX_PIXELS

    @property
    def is_whole(self) -> bool:
        """Whether the part is the whole image."""
        return (self.height, self.width) == (self.image.height, self.image.width)


def tiling_of(settings: DataSettings) -> Tiling | None:
    """Return the tiling of training images; None for none."""
    return None if settings.tile is None else Tiling(settings.tile, settings.overlap)


def tiled(data: DetectionData, settings: DataSettings) -> DetectionData:
    """Return the dataset of the tiles of all images; `data` itself if `data.tile` is not set.

    An image that fits one tile is one itself.

    Raises:
        ConfigError: An image has more than `MAX_TILES`.
    """
    tiling = tiling_of(settings)
    if tiling is None:
        return data
    records: list[ImageRecord] = []
    for image in data.images:
        windows = tiling.windows((image.height, image.width))
        visible = VisibleParts(image)
        for window in windows[1:] or windows:
            records.append(visible.in_window(window, len(records) + 1))
    return replace(data, images=tuple(records))


def with_whole_images(tiles: DetectionData, data: DetectionData, settings: DataSettings) -> DetectionData:
    """Return the tiles, followed by each image with an object that is not certain to be whole in a tile.

    Objects that are too small in the resized image are not targets there; see `MIN_SIDE`.

    Args:
        tiles: The result of `tiled`.
        data: The images.
        settings: The data settings of the training.
    """
    tiling = tiling_of(settings)
    if tiling is None:
        return data
    sizes = settings.sizes()
    resizing: Resizing = "stretch" if settings.stretch else "querybox"
    wholes: list[ImageRecord] = []
    for image in data.images:
        window, *others = tiling.windows((image.height, image.width))
        sides = image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2]
        if not others or not (sides[~image.crowd] > shown_whole(others)).any():
            continue
        shape = resized_shape(image.height, image.width, sizes.short_side, sizes.long_side, resizing)
        scale = np.prod(shape) / (image.height * image.width)
        small = sides.prod(1) * scale < MIN_SIDE**2
        everything = np.ones(len(small), dtype=bool)
        number = len(tiles.images) + len(wholes) + 1
        record = TileRecord(
            number, image, window, image.boxes_xyxy, image.masks, everything, image.crowd | small
        )
        wholes.append(record)
    return replace(tiles, images=(*tiles.images, *wholes))


def describe_tiles(views: DetectionData, data: DetectionData, settings: DataSettings) -> str:
    """Return the number of tiles in one line; empty without tiles."""
    if settings.tile is None:
        return ""
    return (
        f"{data.source}: {counted(len(views.images), 'view')} of {counted(len(data.images), 'image')} are trained on, "
        f"tiles of {settings.tile} pixels with an overlap of {settings.overlap:g} (data.tile)"
    )


class VisibleParts:
    """What windows show of the objects of an image."""

    def __init__(self, image: ImageRecord) -> None:
        self.image = image
        self.areas: dict[int, int] = {}
        """Number of pixels of the masks that have been cut, by object."""

    def in_window(self, window: Window, number: int) -> TileRecord:
        """Return the record of a window, with the id `number`."""
        image = self.image
        left, top, width, height = window
        moved = image.boxes_xyxy - np.array([left, top, left, top])
        clipped = moved.clip(0, [width, height, width, height])
        inside = (clipped[:, 2:] > clipped[:, :2]).all(1)
        cut = (clipped != moved).any(1)
        area, visible = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (moved, clipped))
        share = visible / area
        masks: list[Region | None] = []
        for index in np.flatnonzero(inside).tolist():
            region = None if image.masks is None or image.crowd[index] else image.masks[index]
            masks.append(None if region is None else part_of(region, window))
            if region is not None and cut[index]:
                mask = rasterised(part_of(region, window), (height, width))
                share[index] = mask.area / max(1, self.area(index, region))
                clipped[index] = mask.box_xyxy or clipped[index]
        crowd = image.crowd | (cut & (share < MIN_VISIBLE))
        return TileRecord(number, image, window, clipped[inside], masks, inside, crowd[inside])

    def area(self, index: int, region: Region) -> int:
        """Return the number of pixels of the mask of an object."""
        if index not in self.areas:
            self.areas[index] = rasterised(region, (self.image.height, self.image.width)).area
        return self.areas[index]


def part_of(region: Region, window: Window) -> Region:
    """Return what a window shows of a region; polygons may exceed it."""
    left, top, width, height = window
    if isinstance(region, Rle):
        return Rle.of(region.part((left, top, left + width, top + height)))
    return region.moved(-left, -top)


def read_tile(
    record: TileRecord,
    decode: Callable[[ImageRecord], UInt8[Tensor, "3 H W"]],
    pixel_range: PixelRange | None = None,
) -> UInt8[Tensor, "3 h w"]:
    """Return the pixels of a part of an image; the whole of a TIFF that is read in parts is reduced.

    Args:
        record: The part.
        decode: Returns the pixels of an image that is not read in parts.
        pixel_range: See `Preprocessing.pixel_range`.

    Raises:
        ImageError: The image cannot be read, or its size is not that of its record.
    """
    image, (left, top, width, height) = record.image, record.window
    if not record.is_read_in_parts:
        return decode(image)[:, top : top + height, left : left + width]
    with open_tiff(image.path, pixel_range, (image.height, image.width)) as parts:
        return as_pixels(parts.reduced() if record.is_whole else parts.read(record.window))
