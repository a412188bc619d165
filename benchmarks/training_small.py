"""A training step of the small models, which learn from few images on a laptop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.goals import faster
from benchmarks.measure import Row, Side, Work
from benchmarks.peers import TRANSFORMERS, transformers_targets
from benchmarks.processes import in_separate_processes
from benchmarks.setup import Setup, pixels, targets
from benchmarks.small import SIZES, Kind, transformers_small
from benchmarks.training import BEST, FULL, groups, relative, step, update
from querybox.data import Batch
from querybox.detector import Detector
from querybox.fast.memory import retain_freed_memory
from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion
from querybox.losses.matcher import HungarianMatcher
from querybox.models import find
from querybox.models.layouts.huggingface import HUGGINGFACE, HUGGINGFACE_DEFORMABLE
from querybox.structures import ImageBatch, Preprocessing

BATCH, SIZE, OBJECTS, CLASSES = 8, (240, 320), 15, 3
WHOLE = f"{TRANSFORMERS}, all of the backbone trained"
"""transformers' default; in the other sides the first layers are frozen, as in querybox's recipes."""
TITLES: dict[Kind, str] = {"detr": "DETR", "deformable_detr": "Deformable DETR, 3 maps, refined boxes"}


def rows(setup: Setup) -> Iterator[Row]:
    """Yield one row per model, both with 3 + 3 layers and width 128. Only the losses are compared.

    Gradients are not compared, because different layers are trained, and transformers shares heads between layers
    where the paper has one per layer.
    """
    for kind, title in TITLES.items():
        frozen = find(f"{kind}_small").frozen_stride
        row = Row(
            name=f"training-small-{kind.replace('_', '-')}",
            title=f"Training step of a small {title}, {BATCH} images of {SIZE[0]}x{SIZE[1]} with {OBJECTS} objects",
            sides=[
                Side(name=FULL, build=partial(ours, setup, kind, "float32"), within=retain_freed_memory),
                Side(
                    name=BEST,
                    build=partial(ours, setup, kind, "bf16"),
                    tolerance=0.05,
                    within=retain_freed_memory,
                    precision="bf16",
                ),
                Side(name=TRANSFORMERS, build=partial(transformers, setup, kind, frozen), tolerance=1e-3),
                Side(name=WHOLE, build=partial(transformers, setup, kind, 0), tolerance=1e-3),
            ],
            difference=lambda a, b: relative(a[:1], b[:1]),
            goals=[faster([FULL], peer, 2.0) for peer in (TRANSFORMERS, WHOLE)],
            seconds=setup.seconds(60),
        )
        yield in_separate_processes(row)


def peer(kind: Kind, frozen_stride: int) -> Any:
    """Return transformers' model, with the same weights at each call, and without dropout like the small recipes."""
    torch.manual_seed(0)
    model = transformers_small(kind, CLASSES, frozen_stride=frozen_stride, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_embed" in name:  # new heads are equal in all layers
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def same_detector(kind: Kind) -> tuple[Detector, Criterion]:
    """Return querybox's model with the weights of transformers' model, and transformers' default criterion."""
    model = peer(kind, 0)
    settings: dict[str, Any] = {
        "encoder_layers": SIZES["encoder_layers"],
        "heads": SIZES["encoder_attention_heads"],
        **({"local_start": False} if kind == "detr" else {}),
    }
    detector = Detector.from_recipe(f"{kind}_small", num_classes=CLASSES, **settings)
    layout = HUGGINGFACE if kind == "detr" else HUGGINGFACE_DEFORMABLE
    weights = {name: each for name, each in model.state_dict().items() if "backbone" not in name}
    backbone = model.model.backbone.model.state_dict()
    detector.load_state_dict(
        {**layout.to_ours(weights), **{f"backbone.{name}": each for name, each in backbone.items()}}
    )
    if kind == "detr":
        return detector, Criterion()
    matcher = HungarianMatcher(1.0, 5.0, 2.0, classification=FocalLoss())
    return detector, Criterion(matcher, classification=FocalLoss())


def inputs(setup: Setup) -> Batch:
    """Return the batch of a step."""
    content, sizes = pixels(BATCH, setup.size(*SIZE))
    objects = tuple(targets(BATCH, OBJECTS, CLASSES))
    return Batch(pixels=content, sizes=sizes, targets=objects, image_ids=tuple(range(BATCH)))


def ours(setup: Setup, kind: Kind, precision: str) -> Work:
    """Return an update of querybox's training loop."""
    return update(setup, *same_detector(kind), inputs(setup), precision)


def transformers(setup: Setup, kind: Kind, frozen_stride: int) -> Work:
    """Return a training step of transformers."""
    model = peer(kind, frozen_stride)
    batch = inputs(setup)
    backbone = model.model.backbone.model
    images = ImageBatch.from_pixels(
        batch.pixels, batch.sizes, Preprocessing(mean=backbone.mean, std=backbone.std)
    )
    mask = (~images.padding_mask).long()
    labels = transformers_targets(batch.targets)

    def loss() -> Tensor:
        value: Tensor = model(pixel_values=images.images, pixel_mask=mask, labels=labels).loss
        return value

    return step(model, loss, torch.optim.AdamW(groups(model), lr=1e-4, weight_decay=1e-4, fused=True))
