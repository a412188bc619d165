"""Losses of masks at sampled points (Kirillov et al. 2020, PointRend; Cheng et al. 2022, Mask2Former, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querybox.arguments import require_number
from querybox.errors import ConfigError
from querybox.losses.classification import MAX_WEIGHT
from querybox.mask_embeddings import MASK_STRIDE, ComputedMasks, Masks
from querybox.structures import Matches, Predictions, Target, at_least_float32

POINTS = 1 / 16
"""Number of points at which a mask is compared, per cell of its map, as in RF-DETR (Robinson et al. 2025). Mask2Former
has three times as many."""
OVERSAMPLING = 3
"""Number of candidates per point, of which the most uncertain are used."""
UNCERTAIN = 0.75
"""Fraction of the points that are chosen so. The others are random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLosses:
    """Weights of the losses of masks."""

    mask_weight: float = 5.0
    """Weight of the binary cross-entropy, averaged over the points."""
    dice_weight: float = 5.0
    """Weight of the dice loss."""

    def __post_init__(self) -> None:
        """Raise ConfigError if a weight is not a number, or is out of its range."""
        for name in ("mask_weight", "dice_weight"):
            require_number("MaskLosses", name, getattr(self, name), 0, MAX_WEIGHT)

    def __call__(
        self,
        layers: Sequence[Predictions],
        targets: Sequence[Target],
        matches: Matches,
        *,
        num_matched: Float[Tensor, ""],
    ) -> dict[str, Float[Tensor, " _"]]:
        """Return the losses of every layer with masks by name: sums over the matched pairs, divided by `num_matched`.

        Pairs of images whose masks are not known are excluded. The points are drawn for each image, with the random
        numbers of its device; the masks of an image choose the most uncertain among the same candidates.

        Args:
            layers: Predictions for B images with Q queries each, of which all or the last ones have masks.
            targets: The objects of each image.
            matches: The matched pairs, for each image `Matches.repeats` x min(Q, number of objects).
            num_matched: Number of pairs that the losses are divided by.

        Raises:
            ConfigError: See `computed_masks`.
        """
        predicted = computed_masks(layer.masks for layer in layers)
        device, chosen_points = layers[0].boxes.device, num_points(predicted[0].shape)
        num_random = 2 * round((1 - UNCERTAIN) * chosen_points / 2)
        # non_blocking, so that the host does not wait for a GPU.
        sizes = sizes_in_cells(targets, predicted[0].shape).to(device, non_blocking=True)
        points = torch.cat(
            [random_points(number, sizes) for number in (OVERSAMPLING * chosen_points, num_random)], 1
        )
        order = matches.image.argsort(stable=True)
        counts = [matches.repeats * min(len(target.labels), layers[0].boxes.shape[1]) for target in targets]

        def by_image(indices: Int[Tensor, "_ M"]) -> list[Int[Tensor, "L _"]]:
            """Return the queries or objects of each image's pairs in the layers with masks."""
            indices = indices[-len(predicted) :].expand(len(predicted), -1)
            parts = zip(indices[:, order].split(counts, 1), targets, strict=True)
            # Of images without masks no pair is used, but there is a gradient, because other processes may have some.
            return [part if target.masks is not None else part[:, :0] for part, target in parts]

        queries, objects = by_image(matches.query), by_image(matches.object)
        padded = in_padded_images(points, sizes, predicted[0].shape)
        logits = at_least_float32(torch.cat(list(predicted[0].at_points(predicted, queries, padded)), 1))
        truth = masks_of_pairs(targets, objects, points)  # both [L, number of pairs, points]
        chosen = most_uncertain(logits.detach(), chosen_points, num_random)
        logits, truth = logits.gather(2, chosen), truth.gather(2, chosen).to(logits)
        return {
            name: weight * loss(logits, truth).sum(1) / num_matched.clamp(min=1)
            for name, weight, loss in (
                ("loss_mask", self.mask_weight, binary_cross_entropy),
                ("loss_dice", self.dice_weight, dice_loss),
            )
        }


def computed_masks(layers: Iterable[Masks | None]) -> list[ComputedMasks]:
    """Return the masks of those layers that have some.

    Raises:
        ConfigError: They are those of an exported model, which has masks of some queries alone.
    """
    masks: list[ComputedMasks] = []
    for each in layers:
        if isinstance(each, ComputedMasks):
            masks.append(each)
        elif each is not None:
            raise ConfigError(
                "the losses of masks got predictions of an exported model, which has the masks of its best queries "
                "alone; expected those of a Detector"
            )
    return masks


def mask_costs(
    layers: Sequence[Masks | None], targets: Sequence[Target], boxes: Float[Tensor, "L B Q 4"]
) -> tuple[Float[Tensor, "L B G Q"], Float[Tensor, "L B G Q"]]:
    """Return the binary cross-entropy and the dice loss of every object with every query of its image.

    They are those at random points of the image, the same for all pairs (Mask2Former, section 3.3), and 0 in layers
    without masks and images whose masks are not known. G is the largest number of objects in an image; those of images
    with fewer are padded with empty masks.

    Args:
        layers: The masks of every layer.
        targets: The objects of each image.
        boxes: The boxes of the same queries, whose shape and dtype the costs have.

    Raises:
        ConfigError: See `computed_masks`.
    """
    num_layers, _, num_queries, _ = boxes.shape
    objects = max(len(target.labels) for target in targets)
    costs = boxes.new_zeros(2, num_layers, len(targets), objects, num_queries)
    predicted = computed_masks(layers)
    if not predicted:
        return costs[0], costs[1]
    shape = predicted[0].shape
    sizes = sizes_in_cells(targets, shape).to(boxes, non_blocking=True)
    points = random_points(num_points(shape), sizes)
    every = torch.arange(num_queries, device=boxes.device).expand(len(predicted), -1)
    at_points = predicted[0].at_points(
        predicted, [every] * len(targets), in_padded_images(points, sizes, shape)
    )
    for image, (logits, target) in enumerate(zip(at_points, targets, strict=True)):
        if target.masks is not None:
            truth = sample_masks(target.masks, points[image]).to(boxes)  # [G, P]
            both = pairwise_losses(logits.transpose(1, 2).to(boxes), truth)  # 2 x [L, G, Q]
            costs[:, num_layers - len(predicted) :, image, : len(truth)] = torch.stack(both)
    return costs[0], costs[1]


def pairwise_losses(
    logits: Float[Tensor, "L P Q"], truth: Float[Tensor, "G P"]
) -> tuple[Float[Tensor, "L G Q"], Float[Tensor, "L G Q"]]:
    """Return the `binary_cross_entropy` and the `dice_loss` of every pair of a true and a predicted mask."""
    cross_entropy = (F.softplus(logits).sum(1, keepdim=True) - truth @ logits) / logits.shape[1]
    probabilities = logits.sigmoid()
    total = probabilities.sum(1, keepdim=True) + truth.sum(1, keepdim=True)
    return cross_entropy, 1 - (2 * (truth @ probabilities) + 1) / (total + 1)


def num_points(shape: tuple[int, int]) -> int:
    """Return the number of points at which masks on a map of this size are compared, an even one."""
    height, width = shape
    return 2 * math.ceil(POINTS * height * width / 2)


def random_points(number: int, sizes: Float[Tensor, "B 2"]) -> Float[Tensor, "B P 2"]:
    """Return an even number of random points of each image, (x, y) in 0-1, in pairs that lie between the same cells.

    Each of them is distributed uniformly. A pair reads the four cells that a point reads, so half as many are computed.

    Args:
        number: Number of points of an image.
        sizes: (width, height) of the images in cells.
    """
    sizes = sizes[:, None]
    first, second = torch.rand(2, len(sizes), number // 2, 2, device=sizes.device, dtype=sizes.dtype)
    top_to_bottom = first[..., 1:].argsort(1)  # as cells are in memory
    first = first.gather(1, top_to_bottom.expand(-1, -1, 2))
    # The centre of a cell, or half a cell outside of the image.
    upper_left = (first * sizes - 0.5).floor() + 0.5
    low, high = upper_left.clamp(min=0), (upper_left + 1).minimum(sizes)
    second = (low + second * (high - low)) / sizes
    return torch.stack([first, second], 2).flatten(1, 2)


def in_padded_images(
    points: Float[Tensor, "B P 2"], sizes: Float[Tensor, "B 2"], shape: tuple[int, int]
) -> Float[Tensor, "B P 2"]:
    """Return points in -1 to 1 of the padded images, given those in 0-1 of the unpadded ones.

    Args:
        points: (x, y) of the points.
        sizes: (width, height) of the unpadded images in cells.
        shape: (height, width) of the padded ones.
    """
    height, width = shape
    x, y = (points * sizes[:, None]).unbind(-1)
    return torch.stack([2 * x / width - 1, 2 * y / height - 1], -1)


def sizes_in_cells(targets: Sequence[Target], shape: tuple[int, int]) -> Float[Tensor, "B 2"]:
    """Return the (width, height) of each image in cells of the map of masks.

    The size of an image is that of its masks; without masks, it is that of the map, which does not matter.
    """
    height, width = shape
    sizes = [
        (width, height) if masks is None else (masks.shape[2] / MASK_STRIDE, masks.shape[1] / MASK_STRIDE)
        for masks in (target.masks for target in targets)
    ]
    return torch.tensor(sizes, dtype=torch.float32)


def masks_of_pairs(
    targets: Sequence[Target], objects: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
) -> Bool[Tensor, "L M P"]:
    """Return the pixels of objects in which the points of their image lie.

    Args:
        targets: The objects of each image.
        objects: Some objects of each image, in every layer, counted through all images.
        points: (x, y) in 0-1 of the images.
    """
    first, pixels = 0, []
    for target, index, places in zip(targets, objects, points, strict=True):
        masks = target.masks if target.masks is not None else places.new_zeros(0, 1, 1, dtype=torch.bool)
        pixels.append(sample_masks(masks, places)[index - first])
        first += len(target.labels)
    return torch.cat(pixels, 1)


def sample_masks(masks: Bool[Tensor, "G h w"], points: Float[Tensor, "P 2"]) -> Bool[Tensor, "G P"]:
    """Return the pixels in which points lie, which are (x, y) in 0-1 of the image."""
    height, width = masks.shape[1:]
    x, y = points.unbind(1)
    columns, rows = (x * width).long().clamp(max=width - 1), (y * height).long().clamp(max=height - 1)
    return masks[:, rows, columns]


def most_uncertain(logits: Float[Tensor, "L M P"], num_points: int, num_random: int) -> Tensor:
    """Return the indices [L, M, `num_points`] of the points to use: the last `num_random`, and the most uncertain."""
    candidates = logits[..., : logits.shape[2] - num_random].abs()
    uncertain = candidates.topk(num_points - num_random, largest=False, sorted=False).indices
    last = torch.arange(candidates.shape[2], logits.shape[2], device=logits.device)
    return torch.cat([uncertain, last.expand(*logits.shape[:2], -1)], 2)


def binary_cross_entropy(
    logits: Float[Tensor, "L M P"], truth: Float[Tensor, "L M P"]
) -> Float[Tensor, "L M"]:
    """Return the binary cross-entropy of each mask, averaged over its points."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(2)


def dice_loss(logits: Float[Tensor, "L M P"], truth: Float[Tensor, "L M P"]) -> Float[Tensor, "L M"]:
    """Return the dice loss of each mask (Milletari et al. 2016), with 1 added to numerator and denominator."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * truth).sum(2) + 1
    return 1 - overlap / (probabilities.sum(2) + truth.sum(2) + 1)
