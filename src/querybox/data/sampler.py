"""Which images share a batch: of alike shape, in an order that the seed and the epoch decide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from querybox.data.records import DetectionData
from querybox.errors import ConfigError


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields this process's share of every batch, as (index, epoch) of its images.

    Every batch is full: as many images as would not fill one sit an epoch out, other ones each time. (All take part
    where there are too few for one batch.) Landscape and portrait images are kept apart, so that little is padded;
    only the last batch may mix them. All processes make the same batches from (seed, epoch); process r takes
    images r, r + world_size, ... of each.

    Args:
        data: The images.
        batch_size: Images a batch, over all processes.
        seed: At least 0.
        rank: This process.
        world_size: How many processes there are.

    Raises:
        ConfigError: The processes cannot have equal shares of a batch, or not one image each.
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
                f"{data.source}: {len(data.images)} images for {world_size} processes; each needs one; start fewer"
            )
        self.portrait = np.array([image.height > image.width for image in data.images])
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch to be iterated next.

        Args:
            epoch: From 0.
            skip: How many of its first batches to leave out, because an interrupted run has seen them.
        """
        self.epoch = epoch
        self.skip = skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self._batches(epoch)[self.skip :]:
            yield [(index, epoch) for index in batch[self.rank :: self.world_size]]

    def __len__(self) -> int:
        """How many batches a whole epoch has, whatever `skip`."""
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
        left = waiting[False] + waiting[True]  # none, or one batch
        return [*batches, left] if left else batches
