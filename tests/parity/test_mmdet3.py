"""A checkpoint of MMDetection 3.3.0 gives its numbers here."""

from __future__ import annotations

from typing import Any

from references import Run, assert_five_training_steps, assert_losses, assert_stage, build
from torch import Tensor

from querybox import ImageBatch, Target
from querybox.models.layouts.mmdet3 import MMDET3

SYSTEM = "mmdet3"


def test_logits_and_boxes_of_all_layers(run: Run, golden: dict[str, Any]) -> None:
    assert_stage(run.logits, golden["class_logits"])
    assert_stage(run.boxes, golden["boxes_cxcywh"])


def test_all_losses(run: Run, golden: dict[str, Any]) -> None:
    assert_losses(run.losses, {name: name for name in golden["loss_names"].tolist()}, golden)


def test_five_training_steps(
    theirs: dict[str, Tensor], batch: ImageBatch, targets: list[Target], golden: dict[str, Any]
) -> None:
    assert_five_training_steps(build(MMDET3, theirs, num_classes=80), batch, targets, golden)
