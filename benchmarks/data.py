"""The training data pipeline: from JPEG files and their boxes to normalised, padded batches."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.goals import faster
from benchmarks.measure import Row, Side, Work
from benchmarks.setup import EXAMPLE, Setup
from querybox.data import DataSettings, read_dataset, train_loader
from querybox.data.training_images import read_pixels
from querybox.data.transforms import resize
from querybox.structures import ImageBatch, Preprocessing

OURS = "querybox"
ANNOTATIONS = EXAMPLE / "annotations" / "train.json"
IMAGES, BATCH = 128, 2  # facebookresearch's own batch size

Answer = tuple[Tensor, float]
"""The first image as prepared for evaluation, without augmentation, and the mean pixel count of augmented images."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for one thread, as in a worker process, and one for two worker processes."""
    count = setup.count(IMAGES)
    tolerance = 1.0 if setup.quick else 0.2  # with few images, random sizes differ more
    for name, where, workers in (("data", "one thread", 0), ("data-workers", "two worker processes", 2)):
        yield Row(
            name=name,
            title=f"Training pipeline, {IMAGES} images of 640x480 to batches of {BATCH}, {where}",
            sides=[
                Side(name=OURS, build=partial(ours, count, workers)),
                Side(
                    name=peers.FACEBOOK, build=partial(facebook, setup, count, workers), tolerance=tolerance
                ),
            ],
            difference=difference,
            goals=[faster([OURS], peers.FACEBOOK, 2.0)],
            seconds=setup.seconds(25),
        )


def difference(a: Answer, b: Answer) -> float:
    """Return the larger of the mean pixel difference and the relative difference of the augmented sizes."""
    return max(float((a[0] - b[0]).abs().mean()), abs(1 - b[1] / a[1]))


def one_pass(batches: Callable[[], Iterator[ImageBatch]], prepared: Tensor) -> Work:
    """Return a function that iterates over all batches once, with one thread in this process, as in a worker."""

    def work() -> Answer:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            sizes = [size for batch in batches() for size in batch.sizes.prod(1).tolist()]
        finally:
            torch.set_num_threads(threads)
        return prepared, sum(sizes) / len(sizes)

    return work


def ours(count: int, workers: int) -> Work:
    """Return a pass through querybox's loader, including the normalisation that it normally does on the device."""
    data = read_dataset(ANNOTATIONS)
    data = type(data)(source=data.source, categories=data.categories, images=data.images[:count])
    loader = train_loader(data, DataSettings(workers=workers), batch_size=BATCH, seed=0)
    look = Preprocessing()

    epochs = itertools.count()

    def batches() -> Iterator[ImageBatch]:
        loader.batch_sampler.set_epoch(next(epochs))
        for batch in loader:
            yield ImageBatch.from_pixels(batch.pixels, batch.sizes, look)

    first = resize(read_pixels(data.images[0]), look.short_side, look.long_side)
    prepared = ImageBatch.from_images([first]).images[0]
    return one_pass(batches, prepared)


def facebook(setup: Setup, count: int, workers: int) -> Work:
    """Return a pass through the loader of facebookresearch's main.py."""
    with peers.importable(setup.facebook):
        coco = importlib.import_module("datasets.coco")
        misc = importlib.import_module("util.misc")
    order = [image["id"] for image in json.loads(ANNOTATIONS.read_text(encoding="utf-8"))["images"]]

    def dataset(kind: str) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return coco.CocoDetection(EXAMPLE / "images", ANNOTATIONS, coco.make_coco_transforms(kind), False)

    training = dataset("train")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(training, [training.ids.index(image_id) for image_id in order[:count]]),
        BATCH,
        shuffle=True,
        collate_fn=misc.collate_fn,
        num_workers=workers,
    )

    def batches() -> Iterator[ImageBatch]:
        for nested, objects in loader:
            sizes = torch.stack([each["size"] for each in objects])
            yield ImageBatch(images=nested.tensors, padding_mask=nested.mask, sizes=sizes)

    evaluated = dataset("val")
    prepared, _ = evaluated[evaluated.ids.index(order[0])]
    return one_pass(batches, prepared)
