"""A training step on a GPU: forward, losses, backward, clipping of the gradient, AdamW."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import setup
from benchmarks.gpu.inference import OURS
from benchmarks.gpu.memory import with_peak_memory
from benchmarks.gpu.models import (
    MODELS,
    Model,
    Precision,
    Run,
    batch_on,
    computing_in,
    ours,
    pixels_of,
    theirs,
)
from benchmarks.measure import Row, Side, Work
from benchmarks.peers import TRANSFORMERS, transformers_targets
from benchmarks.setup import Setup
from benchmarks.training import groups, relative, step, update
from querybox.data import Batch

BATCH, OBJECTS = 16, 7
PIXELS = {"detr": 800}
"""Side of the square images in pixels, by the prefix of the model; 640 for all others."""
TOLERANCES: dict[Precision, float] = {"tf32": 0.01, "bf16": 0.05, "float32": 1e-3}
"""How far the loss may be, relatively, from that of the first side, which is querybox's in the same precision."""


def rows(run: Run) -> Iterator[Row]:
    """Yield a row for every model and precision, then those of memory."""
    for precision in run.some(tuple(TOLERANCES)):
        for model in MODELS:
            yield row(run, model, precision)
    for model in run.some(MODELS):
        yield memory_row(run, model)


def row(run: Run, model: Model, precision: Precision) -> Row:
    """Return the row of a model and a precision; every side answers first without dropout, as it is compared."""
    return Row(
        name=f"training-{model.name}-{precision}",
        title=f"{model.title}, training step, {precision}, {described(model)}",
        sides=[
            Side(name=OURS, build=partial(our_step, run, model, precision)),
            Side(
                name=TRANSFORMERS,
                build=partial(their_step, run, model, precision),
                tolerance=TOLERANCES[precision],
            ),
        ],
        # Gradients are not compared: those of Deformable DETR's heads differ, which transformers ties together.
        difference=(lambda a, b: relative(a[:1], b[:1])) if model.same_losses else None,
        rounds=(1 if run.quick else 5, 20),
        seconds=run.seconds(4.0),
    )


def memory_row(run: Run, model: Model) -> Row:
    """Return the row of the peak memory of a model's step."""
    builds = {OURS: our_step, TRANSFORMERS: their_step}
    return Row(
        name=f"memory-training-{model.name}",
        title=f"{model.title}, peak memory of a training step, bf16, {described(model)}, weights included",
        sides=[
            Side(name=name, build=partial(with_peak_memory, run, partial(build, run, model, "bf16")))
            for name, build in builds.items()
        ],
        difference=None,
        unit="MiB",
        value=float,
        rounds=(2, 2),  # AdamW has its state from the first one on
    )


def described(model: Model) -> str:
    """Return the batch of a model in words."""
    pixels = PIXELS.get(model.name, 640)
    return f"{BATCH} x {pixels}x{pixels} with {OBJECTS} objects each"


def our_step(run: Run, model: Model, precision: Precision) -> Work:
    """Return an update of querybox's own training loop, from pixels in the host's memory on."""
    count, pixels = run.batch(BATCH), PIXELS.get(model.name, 640)
    contents, sizes = pixels_of(count, run.size(pixels))
    batch = Batch(
        pixels=contents,
        sizes=sizes,
        targets=tuple(setup.targets(count, OBJECTS)),
        image_ids=tuple(range(count)),
    )
    if run.device.type == "cuda":
        batch = batch.pin_memory()  # as the loader does
    detector = ours(model, run)
    assert detector.recipe is not None
    criterion = model.criterion() if model.criterion else detector.recipe.criterion()
    folder = Setup(folder=Path(tempfile.gettempdir()))  # nothing is written there
    return in_precision(
        update(folder, detector, criterion, batch, "bf16" if precision == "bf16" else "float32"), precision
    )


def their_step(run: Run, model: Model, precision: Precision) -> Work:
    """Return the same step by transformers, with the fused AdamW that is the default of its Trainer."""
    count = run.batch(BATCH)
    peer = theirs(model, run).to(memory_format=torch.channels_last)
    for name, parameter in peer.model.backbone.model.named_parameters():
        # As published, and as ours does; with timm's backbone transformers leaves it out, and trains all layers.
        parameter.requires_grad_(any(part in name for part in model.trained))
    images = batch_on(run, model, count, PIXELS.get(model.name, 640))
    inputs = images.images.to(memory_format=torch.channels_last)
    mask = (~images.padding_mask).long()
    labels = transformers_targets([each.to(run.device) for each in setup.targets(count, OBJECTS)])

    def loss() -> Tensor:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return peer(pixel_values=inputs, pixel_mask=mask, labels=labels).loss

    optimizer = torch.optim.AdamW(groups(peer), lr=1e-4, weight_decay=1e-4, fused=True)
    return in_precision(step(peer, loss, optimizer), precision)


def in_precision(work: Work, precision: Precision) -> Work:
    """Return the same work with TF32 allowed or forbidden."""

    def inside() -> tuple[float, ...]:
        with computing_in(precision):
            return work()

    return inside
