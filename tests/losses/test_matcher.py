"""Matching is exact, per image and layer, whatever shares the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from querybox.arguments import ROUNDING
from querybox.boxes import to_xyxy
from querybox.errors import ConfigError, NonFiniteError
from querybox.losses.matcher import HungarianMatcher
from querybox.structures import Target


def random_case(
    seed: int, counts: list[int], queries: int, layers: int = 2
) -> tuple[Tensor, Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, len(counts), queries, 4, generator=generator)
    boxes = torch.rand(layers, len(counts), queries, 4, generator=generator) * 0.5 + 0.1
    targets = [
        Target(
            boxes=torch.rand(count, 4, generator=generator) * 0.5 + 0.1,
            labels=torch.randint(3, (count,), generator=generator),
        )
        for count in counts
    ]
    return logits, boxes, targets


def direct_cost(logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """The cost of one image and layer, written out pair by pair: [Q, G]."""
    cost = torch.zeros(len(boxes), len(target.boxes))
    for q in range(len(boxes)):
        for g in range(len(target.boxes)):
            a, b = to_xyxy(boxes[q]), to_xyxy(target.boxes[g])
            sides = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0)
            hull = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - sides.prod()
            giou = sides.prod() / union - (hull - union) / hull
            probability = logits[q].softmax(0)[target.labels[g]]
            cost[q, g] = -probability + 5 * (boxes[q] - target.boxes[g]).abs().sum() - 2 * giou
    return cost


@given(st.integers(0, 2**31), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 5))
def test_equals_brute_force(seed: int, counts: list[int], queries: int) -> None:
    logits, boxes, targets = random_case(seed, counts, queries)
    matches = HungarianMatcher()(logits, boxes, targets)
    starts = [sum(counts[:image]) for image in range(len(counts))]
    for layer in range(2):
        for image, target in enumerate(targets):
            here = matches.image == image
            query = matches.query[layer, here]
            objects = matches.object[layer, here] - starts[image]
            size = min(queries, counts[image])
            assert len(query) == len(set(query.tolist())) == len(set(objects.tolist())) == size
            cost = direct_cost(logits[layer, image], boxes[layer, image], target)
            small, large = sorted([queries, counts[image]])
            square = cost if queries >= counts[image] else cost.T
            best = min(
                (
                    sum(float(square[p, i]) for i, p in enumerate(order))
                    for order in permutations(range(large), small)
                ),
                default=0.0,
            )
            assert float(cost[query, objects].sum()) == pytest.approx(best, abs=1e-4)


def test_does_not_depend_on_the_rest_of_the_batch() -> None:
    logits, boxes, targets = random_case(0, [3, 0, 5, 2], 10)
    together = HungarianMatcher()(logits, boxes, targets)
    for image, target in enumerate(targets):
        alone = HungarianMatcher()(logits[:, [image]], boxes[:, [image]], [target])
        assert torch.equal(together.query[:, together.image == image], alone.query)


def test_costs_are_weighted_as_asked() -> None:
    logits, boxes, targets = random_case(1, [3], 6)
    terms = HungarianMatcher(1.0, 0.0, 0.0), HungarianMatcher(0.0, 1.0, 0.0), HungarianMatcher(0.0, 0.0, 1.0)
    parts = [matcher.cost(logits, boxes, targets) for matcher in terms]
    whole = HungarianMatcher(2.0, 3.0, 4.0).cost(logits, boxes, targets)
    torch.testing.assert_close(whole, 2 * parts[0] + 3 * parts[1] + 4 * parts[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_stops(bad: float) -> None:
    logits, boxes, targets = random_case(0, [2], 5)
    boxes[0, 0, 3] = bad
    with pytest.raises(NonFiniteError) as caught:
        HungarianMatcher()(logits, boxes, targets)
    assert str(caught.value) == "matching cost is NaN or infinite, because predictions or targets are"


def test_targets_that_only_the_matcher_sees_are_refused() -> None:
    """Those of an accelerator are not read before the costs arrive on the host."""
    logits, boxes, targets = random_case(0, [2, 3], 5)
    for label in (3, 9):
        high = replace(targets[1], labels=torch.tensor([0, label, 1]))
        with pytest.raises(ConfigError, match=f"^the matcher got the label {label} for 3 classes"):
            HungarianMatcher()(logits, boxes, [targets[0], high])
    targets[0].boxes[1] *= 640
    with pytest.raises(
        ConfigError, match=r"boxes with values from .* expected .* from 0 to 1: divide pixels"
    ):
        HungarianMatcher()(logits, boxes, targets)


@pytest.mark.parametrize(
    ("value", "possible"),
    [(-ROUNDING, True), (-2 * ROUNDING, False), (1 + ROUNDING, True), (1 + 2 * ROUNDING, False)],
)
def test_boxes_may_exceed_the_image_by_rounding(value: float, possible: bool) -> None:
    logits, boxes, targets = random_case(0, [2], 5)
    targets[0].boxes[1, 0] = value
    terms = HungarianMatcher().terms(logits, boxes, targets)
    for name in ("box", "giou"):
        assert terms[name][:, 0, 0].isfinite().all()
        assert terms[name][:, 0, 1].isfinite().all() == possible
