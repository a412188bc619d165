"""The losses of masks against their definition, written as loops over layers, pairs and points."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import HYBRID, SEGMENTATION, TINY
from torch import Tensor
from torch.testing import assert_close

from querybox import Criterion, Detector, DetectorOutput, HungarianMatcher, ImageBatch, Predictions, Target
from querybox.errors import ConfigError
from querybox.losses.masks import MaskLosses, random_points, sample_masks, sizes_in_cells
from querybox.mask_embeddings import MaskEmbeddings
from querybox.models import find
from querybox.structures import Matches

PYRAMID = {**TINY, "levels": 2, "strides": (8, 16)}
SIZES = [(26, 30), (36, 21)]
"""Of the images, which are padded to 36 x 30 pixels, so that the map has 9 x 8 cells."""
MAP = (9, 8)
POINTS = 6
"""A sixteenth of the cells, rounded up to an even number. Two of them are random."""


def layers_of(masks: list[tuple[int, int]], counts: list[int]) -> tuple[list[Predictions], list[Target]]:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    layers = []
    for _ in range(2):
        embeddings = torch.randn(2, 7, 4, dtype=torch.float64, generator=generator, requires_grad=True)
        logits = torch.randn(2, 7, 3, dtype=torch.float64, generator=generator)
        boxes = torch.rand(2, 7, 4, dtype=torch.float64, generator=generator) / 2
        layers.append(
            Predictions(logits=logits, boxes=boxes, masks=MaskEmbeddings(embeddings=embeddings, cells=cells))
        )
    targets = [
        Target(
            boxes=torch.rand(count, 4, generator=generator) / 2,
            labels=torch.randint(2, (count,), generator=generator),
            masks=torch.rand(count, *size, generator=generator) < 0.5,
        )
        for count, size in zip(counts, masks, strict=True)
    ]
    return layers, targets


def logit(embedding: Tensor, cells: Tensor, x: float, y: float) -> Tensor:
    """The product at a place in pixels, between the four closest cells; those at the edge go on beyond it."""
    _, height, width = cells.shape
    total = torch.zeros((), dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            weight_y = max(0.0, 1 - abs(min(max(y / 4 - 0.5, 0), height - 1) - row))
            weight_x = max(0.0, 1 - abs(min(max(x / 4 - 0.5, 0), width - 1) - column))
            total = total + weight_y * weight_x * (embedding @ cells[:, row, column])
    return total


def defined(embedding: Tensor, cells: Tensor, mask: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of a mask, given all candidates, the random points last."""
    height, width = mask.shape
    places = [(x * width, y * height) for x, y in points.tolist()]
    logits = [logit(embedding, cells, x, y) for x, y in places]
    ranked = sorted(range(3 * POINTS), key=lambda index: logits[index].abs().item())
    chosen = [*ranked[: POINTS - 2], *range(3 * POINTS, len(places))]
    assert len(chosen) == POINTS
    cross_entropy, overlap, total = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    for index in chosen:
        x, y = places[index]
        inside = float(mask[math.floor(y), math.floor(x)])
        probability = logits[index].sigmoid()
        cross_entropy = cross_entropy - (inside * probability.log() + (1 - inside) * (1 - probability).log())
        overlap = overlap + probability * inside
        total = total + probability + inside
    return cross_entropy / POINTS, 1 - (2 * overlap + 1) / (total + 1)


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, False)])
def test_the_losses_are_their_definition(known: tuple[bool, bool]) -> None:
    layers, targets = layers_of(SIZES, [2, 1])
    targets = [
        each if with_masks else replace(each, masks=None)
        for each, with_masks in zip(targets, known, strict=True)
    ]
    # Two groups, whose pairs are not sorted by image, as in denoising.
    matches = Matches(
        image=torch.tensor([0, 0, 1, 0, 0, 1]),
        query=torch.tensor([[0, 1, 0, 2, 3, 2]]),
        object=torch.tensor([[0, 1, 2, 0, 1, 2]]),
        repeats=2,
    )
    torch.manual_seed(1)
    losses = MaskLosses(mask_weight=2.0, dice_weight=3.0)(
        layers, targets, matches, num_matched=torch.tensor(4.0)
    )
    torch.manual_seed(1)
    sizes = sizes_in_cells(targets, MAP)
    points = torch.cat([random_points(number, sizes) for number in (3 * POINTS, 2)], 1)
    for index, layer in enumerate(layers):
        assert isinstance(layer.masks, MaskEmbeddings)
        wanted = torch.zeros(2, dtype=torch.float64)
        for image, query, number in zip(
            matches.image.tolist(), matches.query[0].tolist(), matches.object[0].tolist(), strict=True
        ):
            masks = targets[image].masks
            if masks is not None:
                pair = layer.masks.embeddings[image, query], layer.masks.cells[image]
                both = defined(*pair, masks[number - [0, 2][image]], points[image])
                wanted = wanted + torch.stack(both)
        assert_close(losses["loss_mask"][index], 2 * wanted[0] / 4)
        assert_close(losses["loss_dice"][index], 3 * wanted[1] / 4)
    (losses["loss_mask"].sum() + losses["loss_dice"].sum()).backward()
    for layer in layers:
        assert isinstance(layer.masks, MaskEmbeddings)
        assert layer.masks.embeddings.grad is not None
        assert bool(layer.masks.embeddings.grad.any()) == any(known)
        assert layer.masks.cells.grad is not None


def test_the_criterion_weights_masks_like_boxes() -> None:
    layers, targets = layers_of(SIZES, [2, 9])  # more objects than queries
    output = DetectorOutput(layers=tuple(layers))
    torch.manual_seed(1)
    losses = Criterion()(output, targets)
    matches = Criterion().matcher(
        torch.stack([each.logits for each in layers]), torch.stack([each.boxes for each in layers]), targets
    )
    torch.manual_seed(1)
    alone = MaskLosses()(layers, targets, matches, num_matched=torch.tensor(2 + 7.0))
    for name, values in alone.items():
        assert_close(torch.stack([losses[f"d0.{name}"], losses[name]]), values)
    boxes = Criterion()(DetectorOutput(layers=tuple(replace(each, masks=None) for each in layers)), targets)
    for name, value in boxes.items():
        assert torch.equal(value, losses[name])
    half = Criterion()(output, targets, [2, 9, 2, 9])
    assert_close(half["loss_cls"].new_tensor(2.0), losses["loss_bbox"] / half["loss_bbox"])
    assert not {name for name in losses if "mask" in name} - set(half)
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    empty = Criterion()(output.without_queries(), [nothing, nothing])
    assert all(value == 0 for value in empty.values())


def test_the_costs_of_masks_are_their_definition() -> None:
    layers, targets = layers_of(SIZES, [2, 1])
    targets[1] = replace(targets[1], masks=None)
    logits, boxes = (torch.stack([getattr(each, name) for each in layers]) for name in ("logits", "boxes"))
    matcher, masks = HungarianMatcher(mask_cost=2.0, dice_cost=3.0), [each.masks for each in layers]
    torch.manual_seed(1)
    terms = matcher.terms(logits, boxes, targets, masks)
    torch.manual_seed(1)
    points = random_points(POINTS, sizes_in_cells(targets, MAP).double())
    assert targets[0].masks is not None
    for index, each in enumerate(masks):
        assert isinstance(each, MaskEmbeddings)
        for query, embedding in enumerate(each.embeddings[0]):
            for number, mask in enumerate(targets[0].masks):
                pair = cost(embedding, each.cells[0], mask, points[0])
                assert_close(terms["mask"][index, 0, number, query], 2 * pair[0])
                assert_close(terms["dice"][index, 0, number, query], 3 * pair[1])
    assert not terms["mask"][:, 1].any()  # masks that are not known
    assert not terms["dice"][:, 1].any()
    without = HungarianMatcher().cost(logits, boxes, targets)
    torch.manual_seed(1)
    total = matcher.cost(logits, boxes, targets, masks)
    assert_close(total[:, 0], (without + terms["mask"] + terms["dice"])[:, 0])
    last = matcher.terms(logits, boxes, targets, [None, masks[1]])  # a head for the last layer alone
    assert not last["mask"][0].any()
    assert last["mask"][1, 0].all()
    state = torch.get_rng_state()
    assert set(HungarianMatcher().terms(logits, boxes, targets, masks)) == {"class", "box", "giou"}
    assert torch.equal(torch.get_rng_state(), state)


def cost(embedding: Tensor, cells: Tensor, mask: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of a mask at all points."""
    height, width = mask.shape
    cross_entropy, overlap, total = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    for x, y in [(x * width, y * height) for x, y in points.tolist()]:
        inside = float(mask[math.floor(y), math.floor(x)])
        probability = logit(embedding, cells, x, y).detach().sigmoid()
        cross_entropy = cross_entropy - (inside * probability.log() + (1 - inside) * (1 - probability).log())
        overlap = overlap + probability * inside
        total = total + probability + inside
    return cross_entropy / len(points), 1 - (2 * overlap + 1) / (total + 1)


@pytest.mark.parametrize(
    "recipe", ["detr_r50", "conditional_detr_r50", "deformable_detr_r50", "dino_r50", "rtdetr_r18", "dfine_s"]
)
def test_mask_costs_are_settings_of_every_kind(recipe: str) -> None:
    found = find(recipe).replace(masks=True, mask_cost=4.0, dice_cost=3.0).criterion().matcher
    assert (found.mask_cost, found.dice_cost, found.box_cost, found.giou_cost) == (4.0, 3.0, 5.0, 2.0)
    off = find(recipe).criterion().matcher
    assert (off.mask_cost, off.dice_cost, off.box_cost, off.giou_cost) == (0.0, 0.0, 5.0, 2.0)


@pytest.mark.parametrize(("mask_cost", "dice_cost"), [(1.0, 0.0), (0.0, 1.0)])
def test_the_criterion_matches_by_masks(mask_cost: float, dice_cost: float) -> None:
    """Two queries with the same class and box, of which the second has the mask of the object."""
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, :, :16] = True
    cells = torch.ones(1, 1, 8, 8)
    cells[..., 4:] = -1
    layer = Predictions(
        logits=torch.zeros(1, 2, 3),
        boxes=torch.full((1, 2, 4), 0.5),
        masks=MaskEmbeddings(embeddings=torch.tensor([[[-9.0], [9.0]]], requires_grad=True), cells=cells),
    )
    target = Target(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([0]), masks=mask)
    matchers = HungarianMatcher(), HungarianMatcher(mask_cost=mask_cost, dice_cost=dice_cost)
    losses = [
        Criterion(each)(DetectorOutput(layers=(layer,)), [target])["loss_mask"].item() for each in matchers
    ]
    assert losses[0] > 10  # the first of two queries with the same cost
    assert losses[1] < 5


def test_a_point_is_in_the_pixel_around_it() -> None:
    masks = torch.zeros(1, 2, 3, dtype=torch.bool)
    masks[0, 1, 2] = True
    points = torch.tensor([[0.7, 0.6], [0.66, 0.6], [0.7, 0.49], [1.0, 1.0]])  # 1 by rounding alone
    assert sample_masks(masks, points).tolist() == [[True, False, False, True]]


def test_points_are_uniform_and_pairs_are_between_the_same_cells() -> None:
    size, cells = (26, 30), torch.tensor([7.5, 6.5])  # height and width in pixels, width and height in cells
    _, (target, _) = layers_of([size, size], [1, 1])
    torch.manual_seed(0)
    sizes = sizes_in_cells([target], MAP)
    assert torch.equal(sizes, cells[None])
    points = random_points(200_000, sizes)[0]
    assert points.min() >= 0
    assert points.max() <= 1
    first, second = ((each * cells - 0.5).floor() for each in (points[0::2], points[1::2]))
    assert torch.equal(first, second)
    for each in (points[0::2], points[1::2]):
        counts, _ = torch.histogramdd(each, [15, 13], range=[0.0, 1.0, 0.0, 1.0])
        expected = 100_000 / counts.numel()
        assert (counts - expected).square().sum() / expected < 254  # chi-squared with 194 degrees, P = 0.0025
    assert len(points.unique(dim=0)) > 199_000


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("detr_r50", {**TINY, "masks": True}),
        ("detr_r50", {**SEGMENTATION, "backbone": "test_resnet"}),
        ("dino_r50", {**PYRAMID, "denoising": 4, "masks": True}),
        ("dfine_s", {**HYBRID, "backbone": "test_resnet", "denoising": 4, "masks": True}),
    ],
)
def test_masks_are_learned(recipe: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, num_classes=2, frozen_stride=0, **settings).train()
    images = [torch.randint(256, (3, 64, 80), dtype=torch.uint8)] * 2
    masks = torch.zeros(1, 64, 80, dtype=torch.bool)
    masks[:, 20:50, 10:40] = True
    target = Target(boxes=torch.tensor([[0.3, 0.55, 0.4, 0.5]]), labels=torch.tensor([1]), masks=masks)
    targets = [target, replace(target, masks=None)]
    wrong = [replace(target, masks=masks[:, :32]), target]
    with pytest.raises(ConfigError, match=r"masks of 32x80 .* for an image of 64x80; expected the same size"):
        detector(ImageBatch.from_images(images), wrong)
    losses = detector.criterion()(detector(ImageBatch.from_images(images), targets), targets)
    assert {"loss_mask", "loss_dice"} <= set(losses)
    assert ("d0.loss_dice" in losses) == (settings["masks"] is True)
    assert ("dn_loss_mask" in losses) == (recipe != "detr_r50")
    assert "enc_loss_mask" not in losses
    torch.stack(list(losses.values())).sum().backward()
    assert detector.mask_head is not None
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("detr_r50", {**TINY, "masks": True}),
        ("detr_r50", {**SEGMENTATION, "backbone": "test_resnet"}),
        ("deformable_detr_r50", {**PYRAMID, "masks": True}),
        ("dino_r50", {**PYRAMID, "denoising": 4, "masks": True}),
        ("rtdetr_r18", {**HYBRID, "backbone": "test_resnet", "masks": True}),
        ("dfine_s", {**HYBRID, "backbone": "test_resnet", "masks": True}),
    ],
)
def test_the_losses_of_masks_fall(recipe: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, num_classes=1, frozen_stride=0, dropout=0.0, **settings).train()
    pixels = torch.zeros(3, 64, 80, dtype=torch.uint8)
    pixels[:, 20:50, 10:40] = 255
    target = Target(
        boxes=torch.tensor([[25 / 80, 35 / 64, 30 / 80, 30 / 64]]),
        labels=torch.tensor([0]),
        masks=pixels[:1] > 0,
    )
    batch, criterion = ImageBatch.from_images([pixels]), detector.criterion()

    def losses() -> Tensor:
        torch.manual_seed(1)  # the same points
        found = criterion(detector(batch, [target]), [target])
        return found["loss_mask"] + found["loss_dice"]

    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    first = losses().detach()
    for _ in range(10):
        optimizer.zero_grad()
        losses().backward()
        optimizer.step()
    assert losses() < 0.85 * first
