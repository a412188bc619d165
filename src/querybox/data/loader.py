"""Training batches: images read, varied, padded, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from querybox.boxes import to_cxcywh
from querybox.data.image import read_image
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.sampler import BatchSampler
from querybox.data.settings import DataSettings
from querybox.data.transforms import Sample, augment
from querybox.errors import DataError
from querybox.structures import Target, as_pixels, pad


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of one training step, not normalised yet."""

    pixels: UInt8[Tensor, "B 3 H W"]
    """RGB, zero-padded right and below."""
    sizes: Int[Tensor, "B 2"]
    """(height, width) of each image before padding, in pixels."""
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, from which a GPU reads in the background; the DataLoader calls this."""
        return type(self)(
            pixels=self.pixels.pin_memory(),
            sizes=self.sizes.pin_memory(),
            targets=tuple(
                Target(boxes=target.boxes.pin_memory(), labels=target.labels.pin_memory())
                for target in self.targets
            ),
            image_ids=self.image_ids,
        )


class TrainLoader(DataLoader[tuple[Sample, int] | DataError]):
    """A DataLoader of batches, whose `batch_sampler` has `set_epoch`."""

    batch_sampler: BatchSampler

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # a plain iterator is all that is needed
        for batch in super().__iter__():
            if isinstance(batch, DataError):
                raise batch
            yield batch


class TrainingImages(Dataset[tuple[Sample, int] | DataError]):
    """The varied images of a dataset, by (index, epoch): all chance comes from (seed, epoch, image id)."""

    def __init__(self, data: DetectionData, settings: DataSettings, seed: int) -> None:
        self.images = data.images
        self.settings = settings
        self.seed = seed
        # Decoded before the workers start, so that they share this memory.
        self.cached = [read_pixels(record) for record in data.images] if settings.cache else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int] | DataError:
        """Return the image at `(index, epoch)`, varied, and its id; or the error that it cannot be read.

        The error is returned, not raised, because a worker process would bury its one line in a stack trace.
        """
        index, epoch = key
        record = self.images[index]
        try:
            pixels = self.cached[index] if self.cached is not None else read_pixels(record)
        except DataError as error:
            return error
        real = ~record.crowd
        sample = Sample(
            pixels=pixels,
            boxes_xyxy=torch.from_numpy(record.boxes_xyxy[real]).float(),
            labels=torch.from_numpy(record.labels[real]),
        )
        rng = np.random.default_rng((self.seed, epoch, record.id))
        return augment(sample, self.settings, rng), record.id

    def __len__(self) -> int:
        return len(self.images)


def read_pixels(record: ImageRecord) -> UInt8[Tensor, "3 h w"]:
    """Read the image of a record, turned as its boxes are.

    Raises:
        ImageError: It cannot be read, or is not of the size that the record states.
    """
    return as_pixels(read_image(record.path, (record.height, record.width)))


def collate(items: Sequence[tuple[Sample, int] | DataError]) -> Batch | DataError:
    """Pad images to one size; boxes become cxcywh in 0-1 of the unpadded image. An error takes the whole batch."""
    samples: list[Sample] = []
    image_ids: list[int] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        samples.append(item[0])
        image_ids.append(item[1])
    pixels, sizes = pad([sample.pixels for sample in samples])
    return Batch(
        pixels=pixels, sizes=sizes, targets=tuple(map(as_target, samples)), image_ids=tuple(image_ids)
    )


def as_target(sample: Sample) -> Target:
    """Return the objects of `sample` with boxes as cxcywh in 0-1."""
    height, width = sample.pixels.shape[-2:]
    boxes = to_cxcywh(sample.boxes_xyxy) / torch.tensor([width, height, width, height])
    return Target(boxes=boxes, labels=sample.labels)


def train_loader(
    data: DetectionData,
    settings: DataSettings,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> TrainLoader:
    """Load training batches in worker processes.

    Before each epoch call `loader.batch_sampler.set_epoch(epoch)`. Batches depend on `seed` and the epoch alone,
    neither on the number of workers nor on that of training processes, of which each gets its share of every batch.

    Args:
        data: The images to train on.
        settings: Sizes, augmentation, workers.
        batch_size: Images a batch, over all training processes together.
        seed: Of the order and of the augmentation, at least 0.
        rank: This training process, 0 ... world_size - 1.
        world_size: How many training processes there are.

    Raises:
        ConfigError: `batch_size` cannot be shared out between the processes.
        ImageError: An image cannot be read; at once with `settings.cache`, else when its batch is loaded.
    """
    # A generator of its own: DataLoader would else draw from torch's global one, and so change dropout.
    return TrainLoader(
        TrainingImages(data, settings, seed),
        batch_sampler=BatchSampler(data, batch_size, seed, rank, world_size),
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:  # noqa: ARG001 - the DataLoader passes it
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal: it is for the training process, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
