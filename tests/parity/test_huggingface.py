"""A checkpoint of Hugging Face's DETR gives the numbers of transformers 5.23.0 here."""

from __future__ import annotations

from typing import Any

import pytest
from references import Run, assert_losses, assert_stage, unweighted

SYSTEM = "huggingface"


def test_logits_and_boxes(run: Run, golden: dict[str, Any]) -> None:
    assert_stage(run.logits[-1], golden["last_class_logits"])
    assert_stage(run.boxes[-1], golden["last_boxes_cxcywh"])


def test_all_losses(run: Run, golden: dict[str, Any]) -> None:
    assert_losses(*unweighted(run.losses), golden)
    total = sum(loss.item() for loss in run.losses.values())
    assert total == pytest.approx(float(golden["loss_total"]), rel=0.0, abs=1e-5)
