"""A training step of D-FINE S, the published model that fits a laptop."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.goals import faster
from benchmarks.measure import Row, Side, Work
from benchmarks.peers import TRANSFORMERS, transformers_targets
from benchmarks.processes import in_separate_processes
from benchmarks.realtime import detector, peer
from benchmarks.setup import Setup, pixels, targets
from benchmarks.training import BEST, FULL, groups, step, update
from querybox.data import Batch
from querybox.fast.memory import retain_freed_memory
from querybox.structures import ImageBatch

RECIPE = "dfine_s"
BATCH, SIZE, OBJECTS = 8, (320, 320), 7
THEIR_BF16 = f"{TRANSFORMERS} bf16"


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the row. Losses are not compared, because transformers lacks those of the initial boxes."""
    sides = [
        Side(name=FULL, build=partial(ours, setup, "float32"), within=retain_freed_memory),
        Side(name=BEST, build=partial(ours, setup, "bf16"), within=retain_freed_memory, precision="bf16"),
        Side(name=TRANSFORMERS, build=partial(transformers, setup)),
        Side(name=THEIR_BF16, build=partial(transformers, setup, bf16=True), precision="bf16"),
    ]
    yield in_separate_processes(
        Row(
            name="training-dfine-s",
            title=f"Training step of D-FINE S, {BATCH} images of {SIZE[0]}x{SIZE[1]} with {OBJECTS} objects",
            sides=sides,
            difference=None,
            goals=[faster([FULL], TRANSFORMERS, 1.5), faster([BEST], THEIR_BF16, 1.5)],
            seconds=setup.seconds(60),
        )
    )


def inputs(setup: Setup) -> Batch:
    """Return the batch of a step."""
    count, size = (2, (160, 160)) if setup.quick else (BATCH, SIZE)
    contents, sizes = pixels(count, size)
    return Batch(
        pixels=contents,
        sizes=sizes,
        targets=tuple(targets(count, OBJECTS)),
        image_ids=tuple(range(count)),
    )


def ours(setup: Setup, precision: str) -> Work:
    """Return an update of querybox's training loop."""
    model = deepcopy(detector(RECIPE))
    assert model.recipe is not None
    return update(setup, model, model.recipe.criterion(), inputs(setup), precision)


def transformers(setup: Setup, *, bf16: bool = False) -> Work:
    """Return a training step of transformers, which trains all layers of the backbone, as querybox does."""
    name = f"{RECIPE}-training-{'bf16' if bf16 else 'float32'}"  # a folder for each process
    model: Any = peer(RECIPE, setup.folder / name).to(memory_format=torch.channels_last)
    batch = inputs(setup)
    images = ImageBatch.from_pixels(
        batch.pixels, batch.sizes, detector(RECIPE).preprocessing, padded=False
    ).images.to(memory_format=torch.channels_last)
    labels = transformers_targets(batch.targets)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value: Tensor = model(pixel_values=images, labels=labels).loss
        return value

    return step(model, loss, torch.optim.AdamW(groups(model), lr=1e-4, weight_decay=1e-4, fused=True))
