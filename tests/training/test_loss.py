"""Gradient accumulation: the gradients of the parts of a batch add up to those of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import TINY
from torch import Tensor, nn
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.modules.denoising import Denoising
from querybox.structures import Category, ImageBatch, Target
from querybox.training.loss import DetectionLoss

TARGET = Target(boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=torch.float64), labels=torch.tensor([0]))
CATEGORIES = [Category(id=1, name="red"), Category(id=2, name="blue")]
KINDS: dict[str, dict[str, Any]] = {
    "detr_r50": {},
    "conditional_detr_r50": {},
    "deformable_detr_r50_two_stage": {},
    "dino_r50": {"denoising": 12},
    "rtdetr_r18": {"denoising": 12, "encoder_width": 32},
}


def loss_of(recipe: str, **model: Any) -> DetectionLoss:
    """Build a detector in float64 without randomness, whose batch norms are frozen, and its criterion."""
    torch.manual_seed(0)
    settings = {**TINY, "backbone_weights": None, "dropout": 0.0, **model}
    detector = Detector.from_recipe(recipe, categories=CATEGORIES, **settings).double().train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, Denoising):
            module.label_noise = module.box_noise = 0.0
    assert detector.recipe is not None
    return DetectionLoss(detector, detector.recipe.criterion())


def batch(images: Tensor) -> ImageBatch:
    size = torch.tensor([images.shape[2:]] * len(images))
    return ImageBatch(
        images=images, padding_mask=torch.zeros(len(images), *images.shape[2:], dtype=torch.bool), sizes=size
    )


def gradients(
    loss: DetectionLoss, images: Tensor, targets: list[Target], size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradient of all parameters and the losses of an update in parts of `size` images."""
    loss.zero_grad()
    counts = [len(target.labels) for target in targets]
    totals: dict[str, Tensor] = {}
    for first in range(0, len(images), size):
        part = slice(first, first + size)
        losses = loss(batch(images[part]), targets[part], object_counts=counts)
        sum(losses.values()).backward()
        totals = {name: totals.get(name, 0) + value.detach() for name, value in losses.items()}
    found = [p.grad.flatten() for p in loss.parameters() if p.grad is not None]
    return torch.cat(found), totals


@pytest.mark.parametrize(
    ("recipe", "counts"),
    [*((recipe, (12, 0, 1, 2)) for recipe in KINDS), ("dino_r50", (0, 0, 0, 0))],  # 12: more than queries
)
def test_parts_add_up_to_the_whole(recipe: str, counts: tuple[int, ...]) -> None:
    loss = loss_of(recipe, **KINDS[recipe])
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 96, 96, generator=generator, dtype=torch.float64)
    targets = [
        Target(
            boxes=torch.rand(count, 4, generator=generator) * 0.3 + 0.2,
            labels=torch.randint(0, 2, (count,), generator=generator),
        )
        for count in counts
    ]
    whole, losses = gradients(loss, images, targets, 4)
    for size in (1, 3):
        parts, summed = gradients(loss, images, targets, size)
        assert torch.cosine_similarity(parts, whole, 0) > 1 - 1e-9
        assert_close(parts, whole, rtol=1e-6, atol=1e-9 * float(whole.abs().max()))
        assert_close(summed, losses, rtol=1e-9, atol=1e-12)


def test_a_criterion_with_parameters_is_refused() -> None:
    criterion = nn.Module()
    criterion.weight = nn.Parameter(torch.zeros(()))
    with pytest.raises(
        ConfigError, match=r"parameters to train \(weight\), which a run neither updates nor saves"
    ):
        DetectionLoss(loss_of("detr_r50").detector, criterion)
    DetectionLoss(loss_of("detr_r50").detector, criterion.requires_grad_(requires_grad=False))


def test_without_counts_a_batch_is_whole() -> None:
    loss = loss_of("detr_r50")
    images, targets = (
        torch.randn(2, 3, 64, 64, dtype=torch.float64),
        [
            Target(boxes=torch.full((count, 4), 0.3), labels=torch.zeros(count, dtype=torch.long))
            for count in (3, 1)
        ],
    )
    assert_close(
        loss(batch(images), targets), loss(batch(images), targets, object_counts=[3, 1]), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("rtdetr_r18", {"encoder_width": 32}),
        ("dino_r50", {}),
    ],  # a batch norm, a group norm with a group a channel
)
def test_a_map_of_a_single_cell_is_named(recipe: str, model: dict[str, Any]) -> None:
    loss = loss_of(recipe, **model)
    for module in loss.modules():
        module.train()
    with pytest.raises(ConfigError, match="1 x 32 x 32 pixels; expected larger images"):
        loss(batch(torch.rand(1, 3, 32, 32, dtype=torch.float64)), [TARGET])
