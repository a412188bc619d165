"""Batch sampling: images of similar shape, in an order determined by the seed and the epoch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Sampler

from querybox.data.phases import BatchAugmentation, Phases
from querybox.data.records import DetectionData, Unit
from querybox.errors import ConfigError


class ImageKey(NamedTuple):
    """One use of a training image."""

    image_index: int
    epoch: int
    augmentation: BatchAugmentation = BatchAugmentation()


class BatchSampler(Sampler[list[ImageKey]]):
    """Yield this process's share of every batch, or of one part of it after the other, as the keys of its images.

    Every batch is full; the images left over, different ones in each epoch, are skipped. (If there are fewer images
    than `batch_size`, the only batch has all of them.) Landscape and portrait images are batched separately to reduce
    padding; only the last batch may mix them. All processes compute the same batches from (seed, epoch), and process r
    takes images r, r + world_size, ... of each. The batches are the same, however many parts they are divided into.

    Args:
        data: The images.
        batch_size: Number of images per batch, over all processes and parts.
        seed: Seed of the order, at least 0.
        rank: Index of this process.
        world_size: Number of processes.
        parts: Number of parts of a batch, one after the other. An only batch that is not full has fewer, of the same
            size, of which the last one may be smaller.
        phases: The augmentation of every batch; None for the default one.
        shuffle_shards: Number of shards, or row groups of Parquet files, whose images are shuffled together; None for
            all images.

    Raises:
        ConfigError: `batch_size` is not a multiple of `world_size` x `parts`, or there are fewer images than processes;
            or there are images that are in no shard, with `shuffle_shards`.
    """

    def __init__(
        self,
        data: DetectionData,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        parts: int = 1,
        phases: Phases | None = None,
        shuffle_shards: int | None = None,
    ) -> None:
        if batch_size < 1 or batch_size % (world_size * parts):
            divided = f" x {parts} parts" if parts > 1 else ""
            raise ConfigError(
                f"batch_size is {batch_size}; expected a multiple of the {world_size} processes{divided}"
            )
        if len(data.images) < world_size:
            raise ConfigError(
                f"{data.source}: {len(data.images)} images for {world_size} processes; expected at least one each: "
                "use fewer processes"
            )
        self.portrait = np.array([image.height > image.width for image in data.images])
        self.shards = None if shuffle_shards is None else shard_numbers(data)
        self.shuffle_shards = shuffle_shards
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.part_size = batch_size // parts
        self.phases = phases
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch of the next iteration.

        Args:
            epoch: Index of the epoch, from 0.
            skip: Number of parts of batches to skip at the start, when resuming an interrupted epoch.
        """
        self.epoch = epoch
        self.skip = skip

    def set_time_share(self, share: float) -> None:
        """Set the share of the time limit of the run that has passed, which phases may depend on."""
        if self.phases:
            self.phases.time_share = share

    def __iter__(self) -> Iterator[list[ImageKey]]:
        epoch, phases = self.epoch, self.phases
        parts = [
            (number, part) for number, batch in enumerate(self._batches(epoch)) for part in self._parts(batch)
        ]
        for number, part in parts[self.skip :]:
            augmentation = phases.batch(epoch, number, self.num_batches) if phases else BatchAugmentation()
            yield [ImageKey(index, epoch, augmentation) for index in part[self.rank :: self.world_size]]

    def __len__(self) -> int:
        """Return the number of parts of all batches in an epoch, regardless of `skip`."""
        return self.num_batches * len(self._parts(range(min(len(self.portrait), self.batch_size))))

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return max(1, len(self.portrait) // self.batch_size)

    def _parts(self, batch: Sequence[int]) -> list[Sequence[int]]:
        parts = [batch[start : start + self.part_size] for start in range(0, len(batch), self.part_size)]
        return [part for part in parts if len(part) >= self.world_size]  # every process needs an image

    def order(self, epoch: int) -> Int64[np.ndarray, " N"]:
        """Return the images in the order of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.portrait))
        if self.shards is None or self.shuffle_shards is None:
            return order
        turns = rng.permutation(self.shards.max() + 1) // self.shuffle_shards  # when each shard is read
        return order[np.argsort(turns[self.shards[order]], kind="stable")]

    def _batches(self, epoch: int) -> list[list[int]]:
        order = self.order(epoch)
        waiting: dict[bool, list[int]] = {False: [], True: []}
        batches: list[list[int]] = []
        for index in order[: self.num_batches * self.batch_size].tolist():
            group = waiting[bool(self.portrait[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]  # either empty or one batch
        return [*batches, rest] if rest else batches


def shard_numbers(data: DetectionData) -> Int64[np.ndarray, " N"]:
    """Return the number of the shard, or row group of a Parquet file, of each image, from 0.

    Raises:
        ConfigError: An image is in none.
    """
    numbers: dict[Unit, int] = {}
    shards = np.empty(len(data.images), dtype=np.int64)
    for index, image in enumerate(data.images):
        if (unit := image.unit) is None:
            raise ConfigError(
                f"setting 'data.shuffle_shards' is set, but {image.path} of {data.source} is in no shard; expected a "
                "dataset of shards: remove the setting"
            )
        shards[index] = numbers.setdefault(unit, len(numbers))
    return shards


def row_groups(data: DetectionData) -> dict[Unit | None, list[int]]:
    """Return the indices of the images in each row group of Parquet files."""
    groups: defaultdict[Unit | None, list[int]] = defaultdict(list)
    for index, image in enumerate(data.images):
        unit = image.unit
        if unit is not None and unit[1] is not None:
            groups[unit].append(index)
    return dict(groups)
