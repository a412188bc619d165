"""A checkpoint of facebookresearch/detr gives its numbers here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from references import Run, assert_five_training_steps, assert_losses, assert_stage, build, unweighted
from torch import Tensor
from torch.testing import assert_close

from querybox import Criterion, ImageBatch, Target
from querybox.inference.postprocess import postprocess
from querybox.models.layouts.facebook import FACEBOOK

SYSTEM = "facebook"


def test_logits_and_boxes_of_all_layers(run: Run, golden: dict[str, Any]) -> None:
    assert_stage(run.logits, golden["class_logits"])
    assert_stage(run.boxes, golden["boxes_cxcywh"])


def test_matching_of_the_last_layer(run: Run, targets: list[Target], golden: dict[str, Any]) -> None:
    matches = Criterion().matcher(run.logits[-1:], run.boxes[-1:], targets)
    first = 0
    for i, target in enumerate(targets):
        mine = matches.image == i
        pairs = torch.stack([matches.query[0][mine], matches.object[0][mine] - first], dim=1)
        wanted = torch.stack(
            [torch.from_numpy(golden[f"match_{what}_{i}"]) for what in ("query", "gt")], dim=1
        )
        assert sorted(pairs.tolist()) == sorted(wanted.tolist())
        first += len(target.labels)


def test_all_losses(run: Run, golden: dict[str, Any]) -> None:
    assert_losses(*unweighted(run.losses), golden)
    total = sum(loss.item() for loss in run.losses.values())
    assert total == pytest.approx(float(golden["loss_total"]), rel=0.0, abs=1e-5)


def test_five_training_steps(
    theirs: dict[str, Tensor], batch: ImageBatch, targets: list[Target], golden: dict[str, Any]
) -> None:
    assert_five_training_steps(build(FACEBOOK, theirs, num_classes=91), batch, targets, golden)


def test_detections(run: Run, golden: dict[str, Any]) -> None:
    scores, labels, boxes_xyxy, _ = postprocess(
        replace(run.output.layers[-1], class_rows=None),  # theirs are rows of the head
        torch.from_numpy(golden["valid_sizes"]),
        clip_boxes=False,
    )
    for i in range(2):
        wanted = torch.from_numpy(golden[f"detections_{i}"])
        order = wanted[:, 4].argsort(descending=True)  # theirs come in the order of the queries
        assert torch.equal(labels[i], torch.from_numpy(golden[f"detection_labels_{i}"])[order])
        assert_close(scores[i], wanted[order, 4], rtol=0.0, atol=1e-6)
        assert_close(boxes_xyxy[i], wanted[order, :4], rtol=0.0, atol=1e-3)  # pixels


def test_detections_are_of_real_classes(run: Run, golden: dict[str, Any]) -> None:
    last, sizes = run.output.layers[-1], torch.from_numpy(golden["valid_sizes"])
    rows = torch.tensor(run.detector.class_rows)
    assert [run.detector.categories[label].id for label in range(80)] == rows.tolist()
    scores, labels, *_ = postprocess(last, sizes)
    wanted, best = last.logits.softmax(-1)[..., rows].max(
        -1
    )  # the softmax is over all rows, as it was trained
    order = wanted.argsort(descending=True, dim=1)
    assert torch.equal(labels, best.gather(1, order))
    assert_close(scores, wanted.gather(1, order), rtol=0.0, atol=0.0)
