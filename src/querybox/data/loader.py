"""Training batches: images read, varied, padded, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

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
from querybox.errors import ImageError
from querybox.structures import Target, as_pixels, pad

PLACEHOLDER = 64
"""Pixels a side of what stands in for a batch none of whose images can be read."""


class Lost(NamedTuple):
    """An image that could not be read when its turn came."""

    image_id: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of one training step, not normalised yet."""

    pixels: UInt8[Tensor, "B 3 H W"]
    """RGB, zero-padded right and below."""
    sizes: Int[Tensor, "B 2"]
    """(height, width) of each image before padding, in pixels."""
    targets: tuple[Target, ...]
    image_ids: tuple[int, ...]
    """None of them: no image could be read, and a black one without objects stands in, which must weigh nothing."""
    lost: tuple[Lost, ...] = ()
    """Images that would be here if they could be read."""

    def pin_memory(self) -> Self:
        """Copy to page-locked memory, from which a GPU reads in the background; the DataLoader calls this."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            sizes=self.sizes.pin_memory(),
            targets=tuple(
                Target(boxes=target.boxes.pin_memory(), labels=target.labels.pin_memory())
                for target in self.targets
            ),
        )


class TrainLoader(DataLoader[tuple[Sample, int] | Lost]):
    """A DataLoader of batches, whose `batch_sampler` has `set_epoch`."""

    dataset: TrainingImages
    batch_sampler: BatchSampler


class TrainingImages(Dataset[tuple[Sample, int] | Lost]):
    """The varied images of a dataset, by (index, epoch): all chance comes from (seed, epoch, image id)."""

    def __init__(self, data: DetectionData, settings: DataSettings, seed: int) -> None:
        self.images = data.images
        self.settings = settings
        self.seed = seed
        # Decoded before the workers start, so that they share this memory.
        self.cached = [read_or_lose(record) for record in data.images] if settings.cache else None

    def __getitem__(self, key: tuple[int, int]) -> tuple[Sample, int] | Lost:
        """Return the image at `(index, epoch)`, varied, and its id; or that it cannot be read any more."""
        index, epoch = key
        record = self.images[index]
        pixels = self.cached[index] if self.cached is not None else read_or_lose(record)
        if isinstance(pixels, Lost):
            return pixels
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


def read_or_lose(record: ImageRecord) -> UInt8[Tensor, "3 h w"] | Lost:
    """Read the image of a record; what was readable as the run began may be gone or broken by now."""
    try:
        return read_pixels(record)
    except ImageError as error:
        return Lost(record.id, str(error))


def collate(items: Sequence[tuple[Sample, int] | Lost]) -> Batch:
    """Pad images to one size; boxes become cxcywh in 0-1 of the unpadded image. Lost ones are left out."""
    found = [item for item in items if not isinstance(item, Lost)]
    samples = [sample for sample, _ in found] or [placeholder()]
    pixels, sizes = pad([sample.pixels for sample in samples])
    return Batch(
        pixels=pixels,
        sizes=sizes,
        targets=tuple(map(as_target, samples)),
        image_ids=tuple(image_id for _, image_id in found),
        lost=tuple(item for item in items if isinstance(item, Lost)),
    )


def placeholder() -> Sample:
    """Return a black image without objects."""
    pixels = torch.zeros(3, PLACEHOLDER, PLACEHOLDER, dtype=torch.uint8)
    return Sample(pixels=pixels, boxes_xyxy=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))


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
    """
    # A generator of its own: DataLoader would else draw from torch's global one, and so change dropout.
    return TrainLoader(
        TrainingImages(data, settings, seed),
        batch_sampler=BatchSampler(data, batch_size, seed, rank, world_size),
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def start_worker(worker: int) -> None:  # noqa: ARG001 - the DataLoader passes it
    """Leave the other CPUs to the other workers, and signals to the process that started them."""
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of a terminal: it is for the training process, which ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the training process has: PyTorch watches the parent, which may be a fork server that lives on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
