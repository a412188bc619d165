"""Focal loss against its definition; losses of proposals and of denoising."""

from __future__ import annotations

import torch
from torch.testing import assert_close
from torchvision.ops import sigmoid_focal_loss

from querybox import Criterion, DetectorOutput, HungarianMatcher, Predictions, Target
from querybox.losses.classification import Focal
from querybox.structures import Matches


def predictions(queries: int = 6, classes: int = 4) -> Predictions:
    return Predictions(
        logits=torch.randn(2, queries, classes), boxes=torch.rand(2, queries, 4), no_object=False
    )


def objects() -> list[Target]:
    return [
        Target(boxes=0.1 + 0.5 * torch.rand(count, 4), labels=torch.randint(4, (count,))) for count in (2, 1)
    ]


def focal_criterion(*, any_class_proposed: bool = False) -> Criterion:
    matcher = HungarianMatcher(2.0, 5.0, 2.0, classification=Focal())
    return Criterion(matcher, classification=Focal(), class_weight=2.0, any_class_proposed=any_class_proposed)


def test_focal_loss_is_that_of_torchvision() -> None:
    logits = torch.randn(2, 7, 4)
    answers, labels = torch.tensor([[0, 3], [6, 2]]), torch.tensor([[1, 2], [0, 3]])
    wanted = torch.zeros_like(logits)
    for layer in range(2):
        wanted[layer, answers[layer], labels[layer]] = 1.0
    theirs = sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0).sum((1, 2)) / 2
    assert_close(Focal().loss(logits, answers, labels, torch.tensor(2.0), torch.tensor(5.0)), theirs)


def test_focal_cost_is_what_a_match_changes_in_the_loss() -> None:
    logits, none = torch.randn(1, 1, 3, 4), torch.zeros(1, 0, dtype=torch.long)
    one = torch.tensor(1.0)
    answer, label = torch.tensor([[2]]), torch.tensor([[1]])
    matched = Focal().loss(logits[0], answer, label, one, one)
    unmatched = Focal().loss(logits[0], none, none, one, one)
    assert_close(Focal().cost(logits)[0, 0, 2, 1], (matched - unmatched)[0])


def test_focal_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([[[200.0, -200.0]]], requires_grad=True)
    loss = Focal().loss(
        logits, torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor(1.0), torch.tensor(0.0)
    )
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


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
    ours = focal_criterion(any_class_proposed=True)(output, targets)
    theirs = focal_criterion()(output, first)
    assert_close(ours["enc_loss_cls"], theirs["enc_loss_cls"])
    assert_close(ours["loss_cls"], focal_criterion()(output, targets)["loss_cls"])
