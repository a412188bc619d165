"""Training batches: images are read, augmented and padded, in an order determined by the seed and the epoch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from querybox.boxes import to_cxcywh
from querybox.data.augment import augment
from querybox.data.image import JPEG_SUFFIXES, read_image, reduction
from querybox.data.mosaic import mixup
from querybox.data.phases import Phases
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.sampler import BatchSampler, ImageKey
from querybox.data.settings import DataSettings
from querybox.data.tiled import TileRecord, read_tile
from querybox.data.transforms import Sample
from querybox.data.user_transform import UserTransform
from querybox.data.windows import Fill
from querybox.errors import ConfigError, ImageError, StorageError
from querybox.masks import resized
from querybox.pixels import as_pixels, pad
from querybox.structures import IMAGENET_MEAN, PixelRange, Target
from querybox.text import counted

log = logging.getLogger(__name__)

PLACEHOLDER_SIDE = 64
"""Side in pixels of the placeholder image in a batch none of whose images can be read."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of one training step, not yet normalised."""

    pixels: UInt8[Tensor, "B 3 H W"]
    """RGB, zero-padded right and below."""
    sizes: Int[Tensor, "B 2"]
    """(height, width) of each image before padding, in pixels."""
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    """Ids of the images. Empty if none could be read: the batch is then a black placeholder image without objects,
    which must be excluded from the loss."""
    unreadable: tuple[UnreadableImage, ...] = ()
    """Images of the batch that could not be read."""

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory for asynchronous transfer; called by the DataLoader."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            sizes=self.sizes.pin_memory(),
            targets=tuple(
                Target(
                    boxes=target.boxes.pin_memory(),
                    labels=target.labels.pin_memory(),
                    masks=None if target.masks is None else target.masks.pin_memory(),
                )
                for target in self.targets
            ),
        )


class TrainLoader(DataLoader[AugmentedImage | UnreadableImage]):
    """A DataLoader of `Batch` whose `batch_sampler` has `set_epoch`."""

    dataset: TrainingImages
    batch_sampler: BatchSampler

    def check_worker_number_rationality(self) -> None:
        """Do not warn of more workers than CPUs, as PyTorch does for every iterator; `train_loader` does, once."""


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
        sample = augment(sample, self.settings, rng, batch, draw=partial(self.draw, rng), fill=self.fill)
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

    def draw(self, rng: np.random.Generator) -> Sample | None:
        """Return any image, for copy-paste or a mosaic, or None if it cannot be read; its own turn reports this."""
        sample = self.load(int(rng.integers(len(self))), rng)
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


def collate(items: Sequence[AugmentedImage | UnreadableImage]) -> Batch:
    """Mix images if this is their augmentation, pad them to the same size, and skip unreadable ones.

    Boxes become cxcywh in 0-1 of the unpadded image.
    """
    readable = [item for item in items if not isinstance(item, UnreadableImage)]
    samples = [item.sample for item in readable] or [placeholder_sample()]
    if len(readable) > 1 and readable[0].mixup is not None:
        samples = mixup(samples, readable[0].mixup)
    pixels, sizes = pad([sample.pixels for sample in samples])
    return Batch(
        pixels=pixels,
        sizes=sizes,
        targets=tuple(map(to_target, samples)),
        image_ids=tuple(item.image_id for item in readable),
        unreadable=tuple(item for item in items if isinstance(item, UnreadableImage)),
    )


def placeholder_sample() -> Sample:
    """Return a black image without objects."""
    pixels = torch.zeros(3, PLACEHOLDER_SIDE, PLACEHOLDER_SIDE, dtype=torch.uint8)
    return Sample(pixels=pixels, boxes_xyxy=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


def to_target(sample: Sample) -> Target:
    """Return the objects of `sample`, with boxes as cxcywh in 0-1."""
    height, width = sample.pixels.shape[-2:]
    boxes = to_cxcywh(sample.boxes_xyxy) / torch.tensor([width, height, width, height])
    return Target(boxes=boxes, labels=sample.labels, masks=sample.masks)


def train_loader(
    data: DetectionData,
    settings: DataSettings,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    epochs: int = 1,
    fill: Fill = IMAGENET_MEAN,
    transform: Callable[..., Any] | None = None,
    masks: bool = False,
) -> TrainLoader:
    """Create a loader of training batches.

    Call `loader.batch_sampler.set_epoch(epoch)` before each epoch. Batches depend on `seed` and the epoch, but not on
    the number of workers or of training processes, each of which gets its part of every batch. Only which images mixup
    mixes depends on the processes: those of the same part.

    Args:
        data: The images to train on.
        settings: Sizes, augmentation, workers.
        batch_size: Number of images per batch, over all training processes.
        seed: Seed of the order and of the augmentation, at least 0.
        rank: Index of this training process, 0 ... world_size - 1.
        world_size: Number of training processes.
        epochs: Number of epochs of the run, for augmentation that begins or ends during it.
        fill: RGB value, 0-255, of pixels that augmentation adds around images: the mean of the model's preprocessing.
        transform: Applied to every image before everything else; see `UserTransform`.
        masks: Whether targets have masks, of the images all of whose objects have one.

    Raises:
        ConfigError: `batch_size` is not a multiple of `world_size`, or there are fewer images than processes, or
            batches have too few images for mixup; or there are no masks for copy-paste, or `transform` cannot be used.
    """
    check_loading(settings, batch_size, rank, world_size)
    if settings.copy_paste and not any(image.masks for image in data.images):
        raise ConfigError(
            f"setting 'data.copy_paste' is {settings.copy_paste:g}, but {data.source} has no masks; expected a dataset "
            "with masks, or 0"
        )
    user_transform = (
        UserTransform(transform, len(data.categories), pickled=settings.workers > 0) if transform else None
    )
    # A separate generator: the DataLoader would otherwise draw from the global one and so change dropout.
    return TrainLoader(
        TrainingImages(data, settings, seed, fill, user_transform, masks=masks),
        batch_sampler=BatchSampler(
            data,
            batch_size,
            seed,
            rank,
            world_size,
            phases=Phases(settings, seed, epochs),
            shuffle_shards=settings.shuffle_shards,
        ),
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def check_loading(settings: DataSettings, batch_size: int, rank: int, world_size: int) -> None:
    """Check that batches have enough images for mixup, and warn of more workers than CPUs; see `train_loader`.

    Raises:
        ConfigError: They have not.
    """
    if settings.mixup and batch_size < 2 * world_size:
        raise ConfigError(
            f"setting 'data.mixup' is {settings.mixup:g}, but each process trains on one image at a time; expected at "
            "least two: increase 'train.batch_size', or decrease 'train.accumulate'"
        )
    if settings.workers > (cpus := available_cpus()) and rank == 0:
        log.warning(
            "data.workers is %d, but this process may use %s; data.workers=%d may be faster",
            settings.workers,
            counted(cpus, "CPU"),
            cpus,
        )


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker(worker: int) -> None:  # noqa: ARG001 - passed by the DataLoader
    """Initialise a worker process: one thread, and signals are handled by the training process alone."""
    torch.set_num_threads(1)
    # Ctrl-C and SIGHUP reach every process of a terminal; the training process handles them and stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the training process has; PyTorch only watches the parent, which may be a fork server that lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
