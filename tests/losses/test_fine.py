"""The criterion of D-FINE: which matches its losses use, and by what they are divided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.boxes import iou_and_giou, to_xyxy
from querybox.edges import Edges
from querybox.losses.classification import DetachedVarifocalLoss, FocalLoss
from querybox.losses.fine import FineCriterion
from querybox.losses.matcher import HungarianMatcher
from querybox.losses.union import union_of_matches
from querybox.modules.fine import EdgeDistances
from querybox.structures import DetectorOutput, Matches, Predictions, Target

IMAGES, QUERIES, CLASSES, LAYERS = 2, 6, 3, 3
TARGETS = [
    Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]), labels=torch.tensor([0, 2])),
    Target(boxes=torch.tensor([[0.5, 0.5, 0.6, 0.2]]), labels=torch.tensor([1])),
]


@pytest.fixture
def criterion() -> FineCriterion:
    return FineCriterion(
        HungarianMatcher(2.0, 5.0, 2.0, classification=FocalLoss()), classification=DetachedVarifocalLoss()
    )


def plain(generator: torch.Generator) -> Predictions:
    return Predictions(
        logits=torch.randn(IMAGES, QUERIES, CLASSES, generator=generator),
        boxes=0.2 + 0.6 * torch.rand(IMAGES, QUERIES, 4, generator=generator),
        no_object=False,
    )


def output(*, denoising: bool = False) -> DetectorOutput:
    generator = torch.Generator().manual_seed(3)
    initial, proposals = plain(generator), plain(generator)
    distances = EdgeDistances(4.0)()
    layers = []
    for _ in range(LAYERS):
        logits = torch.randn(IMAGES, QUERIES, 4, 33, generator=generator)
        edges = Edges(logits=logits, start=initial.boxes, distances=distances)
        layers.append(replace(plain(generator), boxes=edges.boxes(), edges=edges))
    layers[0] = replace(layers[0], initial=initial)
    result = DetectorOutput(layers=tuple(layers), proposals=proposals)
    if not denoising:
        return result
    given = Matches(
        image=torch.tensor([0, 0, 1] * 2),
        query=torch.tensor([[0, 1, 0, 3, 4, 3]]),
        object=torch.tensor([[0, 1, 2] * 2]),
        repeats=2,
    )
    return replace(result, denoising=result.layers, denoising_matches=given)


def test_the_losses_have_these_names(criterion: FineCriterion) -> None:
    kinds = ("loss_cls", "loss_bbox", "loss_iou", "loss_fgl", "loss_ddf")
    layers = [f"{layer}{kind}" for layer in ("", "d0.", "d1.") for kind in kinds]
    others = [f"{prefix}{kind}" for prefix in ("pre_", "enc_", "dn_pre_") for kind in kinds[:3]]
    denoised = [f"{layer}dn_{kind}" for layer in ("", "d0.", "d1.") for kind in kinds]
    assert set(criterion(output(denoising=True), TARGETS)) == {*layers, *others, *denoised}


def test_without_auxiliary_losses_the_layers_before_the_last_have_none(criterion: FineCriterion) -> None:
    given = output()
    criterion.auxiliary = False
    losses = criterion(given, TARGETS)
    assert not [name for name in losses if name.startswith("d0.")]
    assert {"loss_fgl", "pre_loss_bbox", "enc_loss_bbox"} <= losses.keys()
    alone = criterion(
        replace(given, layers=(replace(given.layers[-1], initial=given.layers[0].initial),)), TARGETS
    )
    for name, loss in losses.items():
        assert_close(alone[name], loss)


def test_boxes_have_the_union_of_all_matchings_and_classes_their_own(criterion: FineCriterion) -> None:
    given = output()
    losses = criterion(given, TARGETS)
    initial = given.layers[0].initial
    assert initial is not None
    assert given.proposals is not None
    every = [*given.layers, initial, given.proposals]
    matchings = [criterion.matcher(each.logits[None], each.boxes[None], TARGETS) for each in every]
    union = union_of_matches(matchings, QUERIES, 3)
    pairs = len(union.image)
    assert 3 < pairs <= 3 * len(every)
    objects = torch.cat([target.boxes for target in TARGETS])[union.object[0]]
    labels = torch.cat([target.labels for target in TARGETS])
    prefixes = ["d0.", "d1.", "", "pre_", "enc_"]
    for prefix, predictions, own in zip(prefixes, every, matchings, strict=True):
        boxes = predictions.boxes[union.image, union.query[0]]
        _, giou = iou_and_giou(to_xyxy(boxes), to_xyxy(objects))
        assert_close(losses[f"{prefix}loss_bbox"], 5 * (boxes - objects).abs().sum() / pairs)
        assert_close(losses[f"{prefix}loss_iou"], 2 * (1 - giou).sum() / pairs)
        matched = predictions.boxes[own.image, own.query[0]]
        iou, _ = iou_and_giou(
            to_xyxy(matched), to_xyxy(torch.cat([target.boxes for target in TARGETS])[own.object[0]])
        )
        assert_close(losses[f"{prefix}loss_cls"], varifocal(predictions.logits, own, labels, iou) / 3)


def varifocal(logits: Tensor, matches: Matches, labels: Tensor, iou: Tensor) -> Tensor:
    """The sum of the varifocal loss over all queries and classes, written as loops."""
    truth = {
        (int(image), int(query), int(labels[object_])): float(quality)
        for image, query, object_, quality in zip(
            matches.image, matches.query[0], matches.object[0], iou, strict=True
        )
    }
    total = torch.zeros(())
    for image in range(IMAGES):
        for query in range(QUERIES):
            for label in range(CLASSES):
                p = logits[image, query, label].sigmoid()
                q = truth.get((image, query, label))
                loss = (
                    -0.75 * p**2 * (1 - p).log()
                    if q is None
                    else -q * (q * p.log() + (1 - q) * (1 - p).log())
                )
                total = total + loss
    return total


def test_denoising_has_its_own_matches_and_the_shares_of_the_others(criterion: FineCriterion) -> None:
    given = output(denoising=True)
    losses = criterion(given, TARGETS)
    matches = given.denoising_matches
    assert matches is not None
    objects = torch.cat([target.boxes for target in TARGETS])[matches.object[0]]
    boxes = given.denoising[-1].boxes[matches.image, matches.query[0]]
    assert_close(losses["dn_loss_bbox"], 5 * (boxes - objects).abs().sum() / 6)
    assert losses["d0.dn_loss_ddf"] > 0
    assert losses["dn_loss_ddf"] == 0


def test_losses_of_parts_are_averaged_by_their_objects(criterion: FineCriterion) -> None:
    """Two equal parts of an update give half of the losses each."""
    given = output()
    whole = criterion(given, TARGETS)
    half = criterion(given, TARGETS, [2, 1, 2, 1])
    for name in whole:
        assert_close(half[name], whole[name] / 2)


def test_without_objects_and_without_queries_all_losses_are_finite(criterion: FineCriterion) -> None:
    nothing = [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))] * IMAGES
    losses = criterion(output(), nothing)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_bbox"] == losses["loss_fgl"] == 0
    losses = criterion(output().without_queries(), TARGETS)
    assert all(loss == 0 for loss in losses.values())
