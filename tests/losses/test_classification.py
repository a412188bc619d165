"""Focal and varifocal loss against their definitions; losses of proposals and of denoising."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou, sigmoid_focal_loss

from querybox import Criterion, DetectorOutput, HungarianMatcher, Predictions, Target
from querybox.boxes import to_xyxy
from querybox.losses.classification import (
    DetachedVarifocalLoss,
    FocalLoss,
    MatchabilityLoss,
    VarifocalLoss,
)
from querybox.models import find
from querybox.structures import Matches


def predictions(queries: int = 6, classes: int = 4) -> Predictions:
    return Predictions(
        logits=torch.randn(2, queries, classes), boxes=torch.rand(2, queries, 4), no_object=False
    )


def objects() -> list[Target]:
    return [
        Target(boxes=0.1 + 0.5 * torch.rand(count, 4), labels=torch.randint(4, (count,))) for count in (2, 1)
    ]


def focal_criterion(*, class_agnostic_proposals: bool = False) -> Criterion:
    matcher = HungarianMatcher(2.0, 5.0, 2.0, classification=FocalLoss())
    return Criterion(
        matcher,
        classification=FocalLoss(),
        class_weight=2.0,
        class_agnostic_proposals=class_agnostic_proposals,
    )


def test_focal_loss_is_that_of_torchvision() -> None:
    logits = torch.randn(2, 7, 4)
    answers, labels = torch.tensor([[0, 3], [6, 2]]), torch.tensor([[1, 2], [0, 3]])
    wanted = torch.zeros_like(logits)
    for layer in range(2):
        wanted[layer, answers[layer], labels[layer]] = 1.0
    theirs = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0).sum((1, 2)) / 2
    counts, iou = (torch.tensor(2.0), torch.tensor(5.0)), torch.rand(2, 2)
    assert_close(FocalLoss().loss(logits, answers, labels, *counts, iou), theirs)


def test_focal_cost_is_what_a_match_changes_in_the_loss() -> None:
    logits, none = torch.randn(1, 1, 3, 4), torch.zeros(1, 0, dtype=torch.long)
    one = torch.tensor(1.0)
    answer, label = torch.tensor([[2]]), torch.tensor([[1]])
    matched = FocalLoss().loss(logits[0], answer, label, one, one, torch.rand(1, 1))
    unmatched = FocalLoss().loss(logits[0], none, none, one, one, torch.zeros(1, 0))
    assert_close(FocalLoss().cost(logits)[0, 0, 2, 1], (matched - unmatched)[0])


def test_focal_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    one = torch.ones(())
    loss = FocalLoss().loss(logits, torch.tensor([[0]]), torch.tensor([[1]]), one, one, torch.ones(1, 1))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_varifocal_loss_is_that_of_its_definition() -> None:
    """VarifocalNet, equation 2: -q (q log p + (1 - q) log(1 - p)) if matched, else -alpha p^gamma log(1 - p)."""
    logits = torch.randn(1, 3, 2, dtype=torch.float64)
    iou = torch.tensor([[0.7, 0.2]], dtype=torch.float64)
    loss = VarifocalLoss().loss(
        logits, torch.tensor([[2, 0]]), torch.tensor([[1, 0]]), torch.tensor(2.0), torch.tensor(1.0), iou
    )
    wanted = {(2, 1): 0.7, (0, 0): 0.2}
    total = 0.0
    for query in range(3):
        for label in range(2):
            p = 1 / (1 + math.exp(-logits[0, query, label]))
            if q := wanted.get((query, label)):
                total -= q * (q * math.log(p) + (1 - q) * math.log(1 - p))
            else:
                total -= 0.75 * p**2 * math.log(1 - p)
    assert_close(loss, torch.tensor([total / 2], dtype=torch.float64))


def test_matchability_aware_loss_is_that_of_its_definition() -> None:
    """DEIM: -q^gamma log p - (1 - q^gamma) log(1 - p) if matched, else -p^gamma log(1 - p)."""
    logits = torch.randn(1, 3, 2, dtype=torch.float64)
    iou = torch.tensor([[0.7, 0.0]], dtype=torch.float64)
    matched = {(2, 1): 0.7, (0, 0): 0.0}
    total, gradient = 0.0, torch.zeros(1, 3, 2, dtype=torch.float64)
    for query in range(3):
        for label in range(2):
            p = 1 / (1 + math.exp(-logits[0, query, label]))
            q = matched.get((query, label))
            target, weight = (0.0, p**1.5) if q is None else (q**1.5, 1.0)
            total -= weight * (target * math.log(p) + (1 - target) * math.log(1 - p))
            gradient[0, query, label] = weight * (p - target) / 2
    logits.requires_grad_()
    loss = MatchabilityLoss().loss(
        logits, torch.tensor([[2, 0]]), torch.tensor([[1, 0]]), torch.tensor(2.0), torch.tensor(1.0), iou
    )
    assert_close(loss, torch.tensor([total / 2], dtype=torch.float64))
    assert_close(torch.autograd.grad(loss.sum(), logits)[0], gradient)  # none through the weights


@pytest.mark.parametrize("recipe", ["dino_small", "dino_r50", "rtdetr_r18", "rtdetr_small"])
def test_kinds_use_it_instead_of_their_own_loss(recipe: str) -> None:
    plain, changed = (find(recipe).replace(matchability=value).criterion() for value in (False, True))
    assert isinstance(changed.classification, MatchabilityLoss)
    assert not isinstance(plain.classification, MatchabilityLoss)
    assert isinstance(changed.matcher.classification, FocalLoss)
    # DINO gives the class more weight where the target is the IoU.
    costs = {"dino_small": (6, 6), "dino_r50": (2, 6), "rtdetr_r18": (2, 2), "rtdetr_small": (6, 6)}
    assert (plain.matcher.class_cost, changed.matcher.class_cost) == costs[recipe]


def test_varifocal_loss_is_least_where_the_score_is_the_iou() -> None:
    logits = torch.linspace(-4, 4, 801)
    loss = VarifocalLoss().matched_loss(logits, torch.full_like(logits, 0.6))
    assert logits[loss.argmin()].sigmoid().item() == pytest.approx(0.6, abs=0.01)


def test_the_criterion_asks_for_the_overlap_and_gives_boxes_no_gradient_by_it() -> None:
    given: list[Tensor] = []

    class Watched(VarifocalLoss):
        def matched_loss(self, logits: Tensor, iou: Tensor) -> Tensor:
            given.append(iou)
            return super().matched_loss(logits, iou)

    targets, layer = objects(), predictions()
    layer.boxes.requires_grad_()
    Criterion(HungarianMatcher(classification=FocalLoss()), classification=Watched())(
        DetectorOutput(layers=(layer,)), targets
    )
    matches = HungarianMatcher(classification=FocalLoss())(layer.logits[None], layer.boxes[None], targets)
    wanted = torch.cat([target.boxes for target in targets])[matches.object[0]]
    found = layer.boxes[matches.image, matches.query[0]]
    assert_close(given[0][0], box_iou(to_xyxy(found), to_xyxy(wanted)).diag().detach())
    assert not given[0].requires_grad


def test_losses_have_the_names_that_users_know() -> None:
    pairs = Matches(
        image=torch.tensor([0, 0, 1]), query=torch.tensor([[0, 1, 0]]), object=torch.tensor([[0, 1, 2]])
    )
    output = DetectorOutput(
        layers=(predictions(), predictions()),
        proposals=predictions(20),
        denoising=(predictions(4), predictions(4)),
        denoising_matches=pairs,
    )
    terms = ("loss_cls", "loss_bbox", "loss_iou")
    prefixes = ("", "d0.", "enc_", "dn_", "d0.dn_")
    assert focal_criterion()(output, objects()).keys() == {f"{p}{t}" for p in prefixes for t in terms}


def test_denoising_losses_are_those_of_the_known_pairs() -> None:
    targets, layer = objects(), predictions(4)
    query = torch.tensor([[3, 1, 2]])
    pairs = Matches(image=torch.tensor([0, 0, 1]), query=query, object=torch.tensor([[0, 1, 2]]))
    output = DetectorOutput(layers=(predictions(),), denoising=(layer,), denoising_matches=pairs)
    losses = focal_criterion()(output, targets)
    found = layer.boxes[pairs.image, query[0]]
    wanted = torch.cat([target.boxes for target in targets])
    assert_close(losses["dn_loss_bbox"], 5 * (found - wanted).abs().sum() / 3)


def test_proposals_may_say_only_that_there_is_an_object() -> None:
    targets = objects()
    output = DetectorOutput(layers=(predictions(),), proposals=predictions(20))
    first = [Target(boxes=target.boxes, labels=torch.zeros_like(target.labels)) for target in targets]
    ours = focal_criterion(class_agnostic_proposals=True)(output, targets)
    theirs = focal_criterion()(output, first)
    assert_close(ours["enc_loss_cls"], theirs["enc_loss_cls"])
    assert_close(ours["loss_cls"], focal_criterion()(output, targets)["loss_cls"])


def test_detached_varifocal_loss_has_no_gradient_through_the_weight_of_negatives() -> None:
    """RT-DETR's: binary cross-entropy with weights 0.75 p^2 for negatives and the IoU for the class of a match."""
    logits = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    answer, label, iou = torch.tensor([[1, 4]]), torch.tensor([[2, 0]]), torch.tensor([[0.6, 0.9]]).double()
    two = torch.tensor(2.0, dtype=torch.float64)
    target, weight = torch.zeros(1, 5, 3).double(), 0.75 * logits.detach().sigmoid() ** 2
    for row, column, value in zip(answer[0], label[0], iou[0], strict=True):
        target[0, row, column] = weight[0, row, column] = value
    expected = (
        torch.nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / two
    )
    loss = DetachedVarifocalLoss().loss(logits, answer, label, two, two, iou)
    assert_close(loss, expected[None])
    assert_close(loss, VarifocalLoss().loss(logits, answer, label, two, two, iou))
    gradient, expected_gradient = (
        torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (loss, expected)
    )
    assert_close(gradient, expected_gradient)
