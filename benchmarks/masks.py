"""The cost of masks: prediction and a training step of the small recipes with a mask head, and without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.accuracy import NUCLEI, load
from benchmarks.goals import smaller
from benchmarks.measure import Row, Side, Work
from benchmarks.processes import in_separate_processes
from benchmarks.setup import EXAMPLE, Setup
from benchmarks.training import update
from benchmarks.training_small import BATCH, CLASSES, OBJECTS, SIZE, inputs
from querybox.data import read_dataset, read_pixels
from querybox.detector import Detector
from querybox.fast.memory import retain_freed_memory
from querybox.inference.optimized_model import OptimizedModel
from querybox.inference.predict import predict
from querybox.modules.detector import DetectionTransformer
from querybox.structures import Target

MASKS, BOXES = "querybox, with masks", "querybox, boxes alone"
Small = Literal["dino_small", "detr_small"]


def rows(setup: Setup) -> Iterator[Row]:
    """Yield rows of prediction by the nuclei example, and those of training steps, with a process for each side."""
    for name, threshold in (("all", 0.0), ("found", 0.5)):
        yield Row(
            name=f"masks-prediction-{name}",
            title=f"Detections above {threshold:g} in an image of 480x640, at most 100, and their masks",
            sides=[
                Side(name=MASKS, build=partial(with_masks, threshold)),
                Side(name=BOXES, build=partial(boxes_alone, threshold), tolerance=1e-3),
            ],
            difference=lambda a, b: float((a.boxes_xyxy - b.boxes_xyxy).abs().max()),
            goals=[smaller([MASKS], BOXES, 1.15)],
            seconds=setup.seconds(30),
        )
    yield from map(in_separate_processes, training_rows(setup))


def training_rows(setup: Setup) -> Iterator[Row]:
    """Yield a row of a training step for each recipe."""
    recipes: tuple[Small, ...] = ("dino_small", "detr_small")
    for recipe in recipes:
        yield Row(
            name=f"masks-training-{recipe.replace('_', '-')}",
            title=f"Training step of {recipe}, {BATCH} images of {SIZE[0]}x{SIZE[1]} with {OBJECTS} objects",
            sides=[
                Side(
                    name=name,
                    build=partial(training, setup, recipe, masks=masks),
                    compared=False,
                    within=retain_freed_memory,
                )
                for name, masks in ((MASKS, True), (BOXES, False))
            ],
            difference=None,
            goals=[smaller([MASKS], BOXES, 1.25)],
            seconds=setup.seconds(60),
        )


def with_masks(threshold: float) -> Work:
    """Return a function that predicts with the detector of the nuclei example."""
    return prediction(load(NUCLEI), threshold)


def boxes_alone(threshold: float) -> Work:
    """Return a function that predicts with the same detector without its mask head."""
    detector = load(NUCLEI)
    assert detector.recipe is not None
    other = detector.recipe.replace(masks=False).build(detector.categories)
    other.load_state_dict(
        {name: each for name, each in detector.state_dict().items() if not name.startswith("mask_head.")}
    )
    other.preprocessing = detector.preprocessing
    return prediction(other, threshold)


def prediction(detector: DetectionTransformer, threshold: float) -> Work:
    """Return a function that predicts on a test image of the nuclei example."""
    pixels = read_pixels(read_dataset(EXAMPLE / "nuclei" / "test.json").images[0])
    engine = OptimizedModel(detector)
    return lambda: next(iter(predict(engine, pixels, threshold=threshold)))


def training(setup: Setup, recipe: Small, *, masks: bool) -> Work:
    """Return an update of querybox's training loop."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, num_classes=CLASSES, masks=masks)
    assert detector.recipe is not None
    batch = inputs(setup)
    if masks:
        shape = batch.pixels.shape[2:]
        targets = tuple(replace(each, masks=ellipses(each, shape)) for each in batch.targets)
        batch = replace(batch, targets=targets)
    return update(setup, detector, detector.recipe.criterion(), batch, "float32")


def ellipses(target: Target, shape: torch.Size) -> Bool[Tensor, "G H W"]:
    """Return the ellipses within the boxes of the objects as their masks."""
    (height, width), (x, y, w, h) = shape, target.boxes[:, :, None, None].unbind(1)
    rows, columns = (torch.arange(height) + 0.5)[:, None] / height, (torch.arange(width) + 0.5) / width
    return ((columns - x) / w) ** 2 + ((rows - y) / h) ** 2 < 0.25
