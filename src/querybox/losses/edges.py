"""Losses of the distributions of edges (D-FINE, section 4).

The fine-grained localization loss (FGL) teaches a distribution where the edge of the object is. The decoupled
distillation focal loss (DDF) teaches the distributions of earlier layers those of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querybox.boxes import iou_and_giou, to_xyxy
from querybox.structures import Matches, Predictions, at_least_float32

FGL_WEIGHT, DDF_WEIGHT = 0.15, 1.5
"""Weights of both losses."""
TEMPERATURE = 5.0
"""Temperature of the distributions in distillation."""


def edge_losses(
    layers: Sequence[Predictions],
    objects: Float[Tensor, "N 4"],
    matches: Matches,
    *,
    num_matched: Float[Tensor, ""],
    shares: tuple[float, float],
) -> dict[str, Float[Tensor, " L"]]:
    """Return the losses of every layer by name; the distillation of the last layer is 0.

    Args:
        layers: Predictions with distributions, of B images with Q queries each.
        objects: Boxes of all images, cxcywh in 0-1.
        matches: The matched pairs, the same in every layer.
        num_matched: Number of pairs that the localization loss is divided by.
        shares: Weights of matched and of other queries in distillation, which sum to 1.
    """
    edges = [layer.edges for layer in layers if layer.edges is not None]
    logits = torch.stack([at_least_float32(each.logits) for each in edges]).flatten(1, 2)  # [L, A, 4, N]
    boxes = torch.stack([at_least_float32(layer.boxes) for layer in layers]).detach()  # [L, B, Q, 4]
    queries = (matches.query[0] + matches.image * boxes.shape[2]).flatten()  # [M]
    target = objects.to(boxes.dtype)[matches.object[0]]  # [M, 4]
    iou, _ = iou_and_giou(to_xyxy(boxes.flatten(1, 2)[:, queries]), to_xyxy(target))  # [L, M]
    start = edges[0].start.flatten(0, 1)[queries]  # [M, 4]
    fgl = localization_loss(logits[:, queries], edges[0].distances, true_distances(start, target), iou)
    scores = at_least_float32(layers[-1].logits).detach().sigmoid().amax(-1).flatten()  # [A]
    weights = scores.expand(len(layers) - 1, -1).index_copy(1, queries, iou[:-1].to(scores.dtype))
    matched = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, queries, value=True)
    ddf = distillation_loss(logits, weights, matched, shares)
    return {"loss_fgl": FGL_WEIGHT * fgl / num_matched.clamp(min=1), "loss_ddf": DDF_WEIGHT * ddf}


def true_distances(start: Float[Tensor, "M 4"], boxes: Float[Tensor, "M 4"]) -> Float[Tensor, "M 4"]:
    """Return how far the edges of `boxes` are outside of those of `start`, relative to its width or height.

    Both are cxcywh; the result is in the order left, top, right, bottom.
    """
    size = start[:, 2:].clamp(min=torch.finfo(start.dtype).tiny).repeat(1, 2)  # [M, 4]
    low, high = (to_xyxy(boxes) - to_xyxy(start)).chunk(2, -1)  # [M, 2]
    return torch.cat([-low, high], -1) / size


def neighbours(
    distances: Float[Tensor, " N"], true: Float[Tensor, "M 4"]
) -> tuple[Int[Tensor, "M 4"], Float[Tensor, "M 4"]]:
    """Return the index of the distance below each true one, and the weight of the one above, 0-1.

    True distances beyond the ends have the nearest end alone.
    """
    last = len(distances) - 2
    index = (torch.searchsorted(distances, true, right=True) - 1).clamp(0, last)  # [M, 4]
    below, above = distances[index], distances[index + 1]
    return index, ((true - below) / (above - below)).clamp(0, 1)


def localization_loss(
    logits: Float[Tensor, "L M 4 N"],
    distances: Float[Tensor, " N"],
    true: Float[Tensor, "M 4"],
    iou: Float[Tensor, "L M"],
) -> Float[Tensor, " L"]:
    """Return the sum of the cross-entropies with the two distances around the true one, weighted by the IoU (FGL)."""
    index, weight = neighbours(distances, true)
    log_probabilities = logits.log_softmax(-1)
    both = torch.stack([index, index + 1], -1).expand(len(logits), -1, -1, -1)  # [L, M, 4, 2]
    below, above = log_probabilities.gather(-1, both).unbind(-1)
    loss = -(below * (1 - weight) + above * weight)  # [L, M, 4]
    return (loss.sum(-1) * iou).sum(1)


def distillation_loss(
    logits: Float[Tensor, "L A 4 N"],
    weights: Float[Tensor, "K A"],
    matched: Bool[Tensor, " A"],
    shares: tuple[float, float],
) -> Float[Tensor, " L"]:
    """Return the weighted divergence of each layer's distributions from those of the last layer (DDF).

    The `weights` are those of queries in each of the K = L - 1 layers before the last, the `shares` those of the mean
    over `matched` queries and of that over the others.
    """
    student = (logits[:-1] / TEMPERATURE).log_softmax(-1)
    teacher = (logits[-1].detach() / TEMPERATURE).log_softmax(-1)
    divergence = F.kl_div(student, teacher.expand_as(student), reduction="none", log_target=True)
    loss = TEMPERATURE**2 * weights * divergence.sum(-1).mean(-1)  # [K, A]
    means = [(loss * mask).sum(1) / mask.sum().clamp(min=1) for mask in (matched, ~matched)]
    mixed = shares[0] * means[0] + shares[1] * means[1]  # [K]
    return torch.cat([mixed, mixed.new_zeros(1)])


def distillation_shares(matches: Matches, predictions: Predictions, fraction: float) -> tuple[float, float]:
    """Return the weights of matched and of other queries in distillation: the square roots of their numbers.

    They sum to the `fraction` of the images of the update that `predictions`, those of one layer, are of.
    """
    total, pairs = predictions.logits[..., 0].numel(), len(matches.image)
    matched, others = math.sqrt(pairs), math.sqrt(total - pairs)
    scale = fraction / max(1.0, matched + others)
    return scale * matched, scale * others
