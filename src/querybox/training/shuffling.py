"""How far the images in Parquet files are shuffled (`data.shuffle_shards`), which is determined by their row groups.

An image is read with all others of its row group, which a process then holds in memory. The images of as many row
groups are shuffled together as fit into half of what a process holds, so that each group is read once in an epoch; the
images of all groups, if these fit.
"""

from __future__ import annotations

from collections import Counter

from querybox.data import DetectionData
from querybox.data.parquet_rows import HELD
from querybox.data.shards import ShardImage
from querybox.text import counted
from querybox.training.settings import RunSettings


def with_row_groups(settings: RunSettings, training: DetectionData) -> tuple[RunSettings, str]:
    """Set `data.shuffle_shards` if images are in Parquet files and too many to be held, unless it is set already.

    Args:
        settings: Resolved settings.
        training: The training images.

    Returns:
        The settings, and one line: what was chosen and why, or a warning that the value set is too large; empty if
        there is nothing to say.
    """
    sizes: Counter[tuple[str, int]] = Counter()
    for image in training.images:
        if isinstance(file := image.file, ShardImage) and file.group is not None:
            sizes[file.shard, file.group] += file.size
    together = settings.data.shuffle_shards
    largest = max(sizes.values(), default=0)
    if sizes.total() <= HELD or (together is not None and together * largest <= HELD):
        return settings, ""
    fitting = max(1, HELD // 2 // largest)
    groups = (
        f"{training.source}: images in Parquet files are read by row groups, of up to {largest / 1e6:,.1f} MB"
    )
    if together is not None:
        return settings, (
            f"{groups}, and a process holds {HELD / 1e6:,.0f} MB: with data.shuffle_shards={together} row groups are "
            f"read several times; data.shuffle_shards={fitting} is faster"
        )
    return settings.replace(data=settings.data.replace(shuffle_shards=fitting)), (
        f"{groups}: the images of {counted(fitting, 'row group')} are shuffled together (data.shuffle_shards={fitting})"
    )
