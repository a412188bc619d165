"""Batch sampling: images of similar shape, in an order determined by the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from querybox.data.records import DetectionData
from querybox.errors import ConfigError


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield this process's part of every batch, as (index, epoch) of its images.

    Every batch is full; the images left over, different ones in each epoch, are skipped. (If there are fewer images
    than `batch_size`, the only batch has all of them.) Landscape and portrait images are batched separately to reduce
    padding; only the last batch may mix them. All processes compute the same batches from (seed, epoch), and process r
    takes images r, r + world_size, ... of each.

    Args:
        data: The images.
        batch_size: Number of images per batch, over all processes.
        seed: Seed of the order, at least 0.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: `batch_size` is not a multiple of `world_size`, or there are fewer images than processes.
    """

    def __init__(
        self, data: DetectionData, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(
                f"batch_size is {batch_size}; expected a multiple of the {world_size} processes"
            )
        if len(data.images) < world_size:
            raise ConfigError(
                f"{data.source}: {len(data.images)} images for {world_size} processes; expected at least one each: "
                "use fewer processes"
            )
        self.portrait = np.array([image.height > image.width for image in data.images])
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Set the epoch of the next iteration.

        Args:
            epoch: Index of the epoch, from 0.
            skip: Number of batches to skip at the start, when resuming an interrupted epoch.
        """
        self.epoch = epoch
        self.skip = skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self._batches(epoch)[self.skip :]:
            yield [(index, epoch) for index in batch[self.rank :: self.world_size]]

    def __len__(self) -> int:
        """Return the number of batches in an epoch, regardless of `skip`."""
        return max(1, len(self.portrait) // self.batch_size)

    def _batches(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.portrait))
        waiting: dict[bool, list[int]] = {False: [], True: []}
        batches: list[list[int]] = []
        for index in order[: len(self) * self.batch_size].tolist():
            group = waiting[bool(self.portrait[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]  # either empty or one batch
        return [*batches, rest] if rest else batches
