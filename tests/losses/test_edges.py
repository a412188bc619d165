"""Losses of distributions against their definitions, written as loops over objects, edges and distances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.edges import Edges
from querybox.losses.edges import distillation_shares, edge_losses, neighbours, true_distances
from querybox.modules.fine import EdgeDistances
from querybox.structures import Matches, Predictions

IMAGES, QUERIES, LAYERS = 2, 5, 3


def test_distances_are_those_of_the_weighting_function() -> None:
    """W(n) of the authors: with a = .5 s, 0, +-((a + 1)^(i / 15) - 1) for i = 1 ... 15, and +-2 a; relative to s."""
    for scale in (4.0, 8.0):
        limit = 0.5 * scale
        inner = [(limit + 1) ** (i / 15) - 1 for i in range(1, 16)]
        wanted = [-2 * limit, *(-each for each in reversed(inner)), 0.0, *inner, 2 * limit]
        distances = EdgeDistances(scale)()
        assert_close(distances, torch.tensor(wanted) / scale)
        assert len(distances) == 33
        assert (distances.diff() > 0).all()


def layers_of(seed: int) -> list[Predictions]:
    generator = torch.Generator().manual_seed(seed)
    distances = EdgeDistances(4.0).double()()
    start = 0.2 + 0.6 * torch.rand(IMAGES, QUERIES, 4, dtype=torch.float64, generator=generator)
    layers = []
    for _ in range(LAYERS):
        logits = torch.randn(
            IMAGES, QUERIES, 4, 33, dtype=torch.float64, generator=generator, requires_grad=True
        )
        edges = Edges(logits=logits, start=start, distances=distances)
        scores = torch.randn(IMAGES, QUERIES, 3, dtype=torch.float64, generator=generator)
        layers.append(Predictions(logits=scores, boxes=edges.boxes(), no_object=False, edges=edges))
    return layers


def corners(box: Tensor) -> list[float]:
    x, y, w, h = box.tolist()
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def iou(a: Tensor, b: Tensor) -> float:
    a = a.detach()
    (l1, t1, r1, b1), (l2, t2, r2, b2) = corners(a), corners(b)
    both = max(0.0, min(r1, r2) - max(l1, l2)) * max(0.0, min(b1, b2) - max(t1, t2))
    return both / ((r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - both)


def true_distance(start: Tensor, box: Tensor, edge: int) -> float:
    """How far an edge of the object is outside of that of the start box, in units of its width or height."""
    outside = corners(box)[edge] - corners(start)[edge]
    return (outside if edge >= 2 else -outside) / float(start[2 + edge % 2])


OBJECTS = torch.tensor(
    [[0.4, 0.5, 0.3, 0.2], [0.6, 0.3, 0.2, 0.5], [0.5, 0.5, 1.9, 1.9]], dtype=torch.float64
)
MATCHES = Matches(
    image=torch.tensor([0, 0, 1, 1]), query=torch.tensor([[3, 0, 1, 4]]), object=torch.tensor([[0, 1, 2, 2]])
)


def losses_of(layers: list[Predictions], shares: tuple[float, float]) -> dict[str, Tensor]:
    return edge_losses(layers, OBJECTS, MATCHES, num_matched=torch.tensor(4.0).double(), shares=shares)


def test_localization_is_the_cross_entropy_with_the_two_distances_around_the_edge() -> None:
    layers = layers_of(0)
    got = losses_of(layers, (0.5, 0.5))["loss_fgl"]
    beyond = 0
    for layer, predictions in enumerate(layers):
        edges = predictions.edges
        assert edges is not None
        total = 0.0
        for image, query, object_ in zip(MATCHES.image, MATCHES.query[0], MATCHES.object[0], strict=True):
            box = OBJECTS[object_]
            weight = iou(predictions.boxes[image, query], box)
            for edge in range(4):
                true = true_distance(edges.start[image, query], box, edge)
                probabilities = edges.logits[image, query, edge].detach().softmax(0)
                n = 0
                while n < 31 and float(edges.distances[n + 1]) <= true:
                    n += 1
                low, high = float(edges.distances[n]), float(edges.distances[n + 1])
                share = min(1.0, max(0.0, (true - low) / (high - low)))
                beyond += not low <= true <= high
                value = -(1 - share) * math.log(probabilities[n]) - share * math.log(probabilities[n + 1])
                total += weight * value
        assert float(got[layer].detach()) == pytest.approx(0.15 * total / 4, rel=1e-9)
    assert beyond  # the third object reaches beyond the largest distance


def test_distillation_is_the_divergence_from_the_last_layer() -> None:
    layers = layers_of(1)
    union, shares = 4, distillation_shares(MATCHES, layers[0], 1.0)
    others = IMAGES * QUERIES - union
    assert [float(share) for share in shares] == pytest.approx(
        [
            math.sqrt(union) / (math.sqrt(union) + math.sqrt(others)),
            math.sqrt(others) / (math.sqrt(union) + math.sqrt(others)),
        ]
    )
    got = losses_of(layers, shares)["loss_ddf"]
    pairs = {
        (int(image), int(query)): int(object_)
        for image, query, object_ in zip(MATCHES.image, MATCHES.query[0], MATCHES.object[0], strict=True)
    }
    for layer, predictions in enumerate(layers[:-1]):
        sums, numbers = [0.0, 0.0], [0, 0]
        for image in range(IMAGES):
            for query in range(QUERIES):
                object_ = pairs.get((image, query))
                best = float(layers[-1].logits[image, query].sigmoid().max())
                weight = best if object_ is None else iou(predictions.boxes[image, query], OBJECTS[object_])
                for edge in range(4):
                    teacher, student = (
                        (each.edges.logits[image, query, edge].detach() / 5).softmax(0)  # type: ignore[union-attr]
                        for each in (layers[-1], predictions)
                    )
                    divergence = float((teacher * (teacher.log() - student.log())).sum())
                    sums[object_ is None] += weight * 25 * divergence
                    numbers[object_ is None] += 1
        means = [total / number for total, number in zip(sums, numbers, strict=True)]
        wanted = 1.5 * (float(shares[0]) * means[0] + float(shares[1]) * means[1])
        assert float(got[layer].detach()) == pytest.approx(wanted, rel=1e-6)
    assert float(got[-1].detach()) == 0


def test_the_teacher_the_weights_and_the_start_get_no_gradient() -> None:
    layers = layers_of(2)
    losses = losses_of(layers, (0.5, 0.5))
    logits = [layer.edges.logits for layer in layers if layer.edges is not None]
    from_ddf = torch.autograd.grad(losses["loss_ddf"].sum(), logits, retain_graph=True, allow_unused=True)
    assert from_ddf[-1] is None or not from_ddf[-1].any()
    assert from_ddf[0].any()
    # Of matched queries alone, and not through the boxes that the IoU is computed from.
    (gradient,) = torch.autograd.grad(losses["loss_fgl"][0], logits[:1])
    rows = gradient.flatten(2).any(-1)
    overlapping = {
        (int(image), int(query))
        for image, query, object_ in zip(MATCHES.image, MATCHES.query[0], MATCHES.object[0], strict=True)
        if iou(layers[0].boxes[image, query], OBJECTS[object_]) > 0
    }
    assert {tuple(row) for row in rows.nonzero().tolist()} == overlapping
    assert len(overlapping) >= 2
    assert_close(gradient.sum(-1), torch.zeros_like(gradient.sum(-1)), rtol=0, atol=1e-9)


def test_true_distances_of_the_start_box_are_zero() -> None:
    box = torch.tensor([[0.3, 0.4, 0.2, 0.1]])
    assert_close(true_distances(box, box), torch.zeros(1, 4), rtol=0, atol=1e-6)
    wider = torch.tensor([[0.35, 0.4, 0.3, 0.1]])  # 0.1, half the width, to the right
    assert_close(true_distances(box, wider), torch.tensor([[0.0, 0.0, 0.5, 0.0]]), rtol=0, atol=1e-6)
    empty = torch.tensor([[0.3, 0.4, 0.0, 0.0]])
    index, weight = neighbours(EdgeDistances(4.0)(), true_distances(empty, box))
    assert index.tolist() == [[31] * 4]
    assert weight.tolist() == [[1.0] * 4]
