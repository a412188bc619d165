"""Training batches: augmented images, padded, in an order determined by the seed and the epoch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from querybox.boxes import to_cxcywh
from querybox.data.mosaic import mixup
from querybox.data.phases import Phases
from querybox.data.records import DetectionData
from querybox.data.sampler import BatchSampler
from querybox.data.settings import DataSettings
from querybox.data.training_images import AugmentedImage, TrainingImages, UnreadableImage
from querybox.data.transforms import Sample
from querybox.data.user_transform import UserTransform
from querybox.data.windows import Fill
from querybox.errors import ConfigError, WorkerError
from querybox.machine import available_cpus
from querybox.memory import first_line
from querybox.pixels import pad
from querybox.structures import IMAGENET_MEAN, Target
from querybox.text import counted

logger = logging.getLogger(__name__)

PLACEHOLDER_SIDE = 64
"""Side in pixels of the placeholder image in a batch none of whose images can be read."""
EXITED = "DataLoader worker (pid"
"""Part of PyTorch's messages when a process that loads images has exited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Images of one training step, not yet normalised."""

    pixels: UInt8[Tensor, "B 3 H W"]
    """RGB images, zero-padded at the right and bottom."""
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
    parts: int = 1,
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
        batch_size: Number of images per batch, over all training processes and parts.
        seed: Seed of the order and of the augmentation, at least 0.
        rank: Index of this training process, 0 ... world_size - 1.
        world_size: Number of training processes.
        parts: Number of parts of each batch that are yielded one after the other, for the accumulation of gradients.
        epochs: Number of epochs of the run, for augmentation that begins or ends during it.
        fill: RGB value, 0-255, of pixels that augmentation adds around images: the mean of the model's preprocessing.
        transform: Applied to every image before everything else; see `UserTransform`.
        masks: Whether targets have masks, of the images all of whose objects have one.

    Raises:
        ConfigError: `batch_size` is not a multiple of `world_size` x `parts`, or there are fewer images than processes,
            or batches have too few images for mixup; or there are no masks for copy-paste, or `transform` cannot be
            used.
    """
    check_loading(settings, batch_size // parts, rank, world_size)
    preload_for_workers()
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
            parts=parts,
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
        ConfigError: Batches have too few images for mixup.
    """
    if settings.mixup and batch_size < 2 * world_size:
        raise ConfigError(
            f"setting 'data.mixup' is {settings.mixup:g}, but each process trains on one image at a time; expected at "
            "least two: increase 'train.batch_size', or decrease 'train.accumulate'"
        )
    if settings.workers > (cpus := available_cpus()) and rank == 0:
        logger.warning(
            "data.workers is %d, but this process may use %s; data.workers=%d may be faster",
            settings.workers,
            counted(cpus, "CPU"),
            cpus,
        )


def preload_for_workers() -> None:
    """Have the fork server import PyTorch and this package once, from which Python forks workers from 3.14 on.

    Each worker would import them by itself, for seconds and for hundreds of megabytes. What a script has set is
    imported as well. This is without effect where processes start in another way, and if the server already runs.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # as on Windows
        return
    from multiprocessing import forkserver

    modules: list[str] = getattr(forkserver._forkserver, "_preload_modules", ["__main__"])
    if __name__ not in modules:
        multiprocessing.set_forkserver_preload([*modules, __name__])


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


@contextmanager
def worker_errors(cure: str) -> Iterator[None]:
    """Translate the errors that PyTorch raises when a process that loads images has exited.

    Args:
        cure: What to do then.

    Raises:
        WorkerError: A process has exited.
    """
    try:
        yield
    except (EOFError, ConnectionError, FileNotFoundError) as error:  # while it started or passed on a batch
        raise worker_error(repr(error), cure) from error
    except RuntimeError as error:
        if EXITED not in first_line(error):
            raise
        raise worker_error(first_line(error), cure) from error


def worker_error(reason: str, cure: str) -> WorkerError:
    """Return the error for the exit of a process that loads images."""
    script = ""
    if multiprocessing.get_start_method() != "fork":  # then it imports the script, which may begin again
        script = ", or because a script does its work outside of `if __name__ == '__main__':`"
    return WorkerError(
        f"a process that loads images exited ({reason}), usually for lack of memory{script}. {cure}"
    )
