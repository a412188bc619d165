"""Training images: read from files or from memory, changed by the user's transform, and augmented."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from querybox.data.augment import augment
from querybox.data.image import JPEG_SUFFIXES, read_image, reduction
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.sampler import ImageKey, row_groups
from querybox.data.settings import DataSettings
from querybox.data.tiled import TileRecord, read_tile
from querybox.data.transforms import Sample
from querybox.data.user_transform import UserTransform
from querybox.data.windows import Fill
from querybox.errors import ImageError, StorageError
from querybox.masks import resized
from querybox.pixels import as_pixels
from querybox.structures import IMAGENET_MEAN, PixelRange


class UnreadableImage(NamedTuple):
    """An image that could not be read during training."""

    image_id: int
    reason: str


class AugmentedImage(NamedTuple):
    """An image as it is trained on."""

    sample: Sample
    image_id: int
    mixup: float | None = None
    """See `BatchAugmentation`."""


class TrainingImages(Dataset[AugmentedImage | UnreadableImage]):
    """The augmented images of a dataset, by (index, epoch). Augmentation depends on (seed, epoch, image id) alone."""

    def __init__(
        self,
        data: DetectionData,
        settings: DataSettings,
        seed: int,
        fill: Fill = IMAGENET_MEAN,
        transform: UserTransform | None = None,
        *,
        masks: bool = False,
    ) -> None:
        self.images = data.images
        self.settings = settings
        self.seed = seed
        self.fill = fill
        self.transform = transform
        self.masks = masks
        self.groups = row_groups(data)
        # Decoded before the workers are forked, so that they share the memory.
        self.cached = self.read_all() if settings.cache else None

    def __getitem__(self, key: tuple[int, int] | ImageKey) -> AugmentedImage | UnreadableImage:
        """Return the augmented image of a key, or the error if it cannot be read."""
        index, epoch, batch = ImageKey(*key)
        image_id = self.images[index].id
        rng = np.random.default_rng((self.seed, epoch, image_id))
        sample = self.load(index, rng)
        if isinstance(sample, UnreadableImage):
            return sample
        sample = augment(
            sample, self.settings, rng, batch, draw=partial(self.draw, index, rng), fill=self.fill
        )
        if not self.masks:  # they were read for copy-paste
            sample = sample._replace(masks=None)
        return AugmentedImage(sample, image_id, batch.mixup)

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, image_ids: Collection[int]) -> str:
        """Return images in words, for messages."""
        tiles = [
            f"{image.path.name} from ({image.window.left}, {image.window.top})"
            for image in self.images
            if isinstance(image, TileRecord) and image.id in image_ids
        ]
        return f"the tiles {', '.join(tiles)}" if tiles else f"the image ids {', '.join(map(str, image_ids))}"

    def draw(self, index: int, rng: np.random.Generator) -> Sample | None:
        """Return any image, for copy-paste or a mosaic, or None if it cannot be read; its own turn reports this.

        It is one of the same row group for an image in a Parquet file, which is in memory with it.
        """
        group = self.groups.get(self.images[index].unit)
        any_one = int(rng.integers(len(self) if group is None else len(group)))
        sample = self.load(any_one if group is None else group[any_one], rng)
        return None if isinstance(sample, UnreadableImage) else sample

    def load(self, index: int, rng: np.random.Generator) -> Sample | UnreadableImage:
        """Return an image after the user's transform, if any, or the error if it can no longer be read."""
        record = self.images[index]
        pixels = self.read(record) if self.cached is None else self.cached[index]
        if isinstance(pixels, UnreadableImage):
            return pixels
        objects = ~record.crowd
        height, width = pixels.shape[-2:]
        scale = np.array([width / record.width, height / record.height] * 2)  # 1 unless it was reduced
        sample = Sample(
            pixels=pixels,
            boxes_xyxy=torch.from_numpy(record.boxes_xyxy[objects] * scale).float(),
            labels=torch.from_numpy(record.labels[objects]),
            masks=load_masks(record, (height, width)) if self.masks or self.settings.copy_paste else None,
        )
        return self.transform(sample, rng, str(record.file)) if self.transform else sample

    def read_all(self) -> list[UInt8[Tensor, "3 h w"] | UnreadableImage]:
        """Read all images. Tiles of one image share its memory, unless it is read in parts."""
        decode = cache(partial(read_pixels, pixel_range=self.settings.pixel_range))
        return [self.read(record, decode) for record in self.images]

    def read(
        self, record: ImageRecord, decode: Callable[[ImageRecord], UInt8[Tensor, "3 h w"]] | None = None
    ) -> UInt8[Tensor, "3 h w"] | UnreadableImage:
        """Read an image, reduced if it is much larger than needed; return the error if it can no longer be read.

        Args:
            record: The image, or a tile of one.
            decode: Returns the image of a tile; None to read it.
        """
        pixel_range, side = self.settings.pixel_range, self.settings.sizes().decoded_side
        try:
            if isinstance(record, TileRecord):
                decode = decode or partial(read_pixels, pixel_range=pixel_range)
                return read_tile(record, decode, pixel_range)
            return read_pixels(record, side, pixel_range=pixel_range)
        except (ImageError, StorageError) as error:  # the latter after what the storage's package tries again
            return UnreadableImage(record.id, str(error))


def read_pixels(
    record: ImageRecord, min_side: int | None = None, *, pixel_range: PixelRange | None = None
) -> UInt8[Tensor, "3 h w"]:
    """Read the image of a record, in the orientation that its boxes refer to.

    Args:
        record: The image.
        min_side: See `read_image`.
        pixel_range: See `Preprocessing.pixel_range`.

    Raises:
        ImageError: The image cannot be read, or its size is not that of the record.
    """
    size = (record.height, record.width)
    return as_pixels(read_image(record.file, size, min_side=min_side, pixel_range=pixel_range))


def load_masks(record: ImageRecord, shape: tuple[int, int]) -> Bool[Tensor, "G H W"] | None:
    """Return the pixels of the objects of an image, without crowd regions; None if those of one are not known.

    Args:
        record: The image.
        shape: (height, width) of the image that they are for, which may have been resized.
    """
    objects = np.flatnonzero(~record.crowd).tolist()
    regions = [record.masks[index] if record.masks else None for index in objects]
    size = (record.height, record.width)
    masks = [resized(region, size, shape) for region in regions if region is not None]
    if len(masks) < len(objects):
        return None
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *shape, dtype=torch.bool)


def decoded_bytes(data: DetectionData, settings: DataSettings) -> int:
    """Return the memory that all images take with `DataSettings.cache`, in bytes."""
    side = settings.sizes().decoded_side
    pixels: dict[int, int] = {}  # by the object that holds them: a tile, or the image that it is a part of
    for image in data.images:
        held = image.image if isinstance(image, TileRecord) and not image.is_read_in_parts else image
        jpeg = held is image and image.path.suffix.lower() in JPEG_SUFFIXES
        factor = reduction(min(held.height, held.width), side) if jpeg else 1
        pixels[id(held)] = held.height * held.width // factor**2
    return 3 * sum(pixels.values())
