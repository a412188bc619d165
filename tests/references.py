"""What the original systems computed (``parity/reference``), and how closely querybox has to follow."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox import Criterion, Detector, DetectorOutput, ImageBatch, Target
from querybox.models.layouts.layout import Layout

REFERENCE = Path(__file__).parent / "parity" / "reference"


def pseudo_weights() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pseudo_weights", REFERENCE / "pseudo_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_state(system: str) -> dict[str, Tensor]:
    """The stand-in checkpoint under the names of `system`."""
    state = pseudo_weights().state_dict(system, REFERENCE)
    return {name: torch.from_numpy(array) for name, array in state.items()}


def build(layout: Layout, state: dict[str, Tensor], num_classes: int) -> Detector:
    """The detector of the reference: without dropout, so that training repeats."""
    detector = Detector.from_recipe("detr_r50", num_classes=num_classes, dropout=0.0)
    detector.load_state_dict(layout.to_ours(state))
    return detector


@dataclass
class Run:
    """One forward and backward pass, with what passed between the stages."""

    detector: Detector
    output: DetectorOutput
    stages: dict[str, Any]
    losses: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        return torch.stack([layer.logits for layer in self.output.layers])

    @property
    def boxes(self) -> Tensor:
        return torch.stack([layer.boxes for layer in self.output.layers])


def assert_stage(actual: Tensor, wanted: Any) -> None:
    """Compare one of the stages 1 to 7 with its reference array."""
    assert_close(actual, torch.from_numpy(wanted), rtol=0.0, atol=2e-4)


def assert_losses(actual: dict[str, Tensor], names: dict[str, str], golden: dict[str, Any]) -> None:
    """Compare losses with the reference, which has `names` for ours."""
    wanted = dict(zip(golden["loss_names"].tolist(), golden["loss_values"].tolist(), strict=True))
    assert actual.keys() == names.keys()
    for name, theirs in names.items():
        assert actual[name].item() == pytest.approx(wanted[theirs], rel=1e-4), name


def unweighted(losses: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our losses without their weights, and the names that facebookresearch and Hugging Face have for them."""
    weights = {"loss_cls": 1, "loss_bbox": 5, "loss_iou": 2}
    theirs = {"loss_cls": "loss_ce", "loss_bbox": "loss_bbox", "loss_iou": "loss_giou"}
    plain, names = {}, {}
    for name, loss in losses.items():
        layer, _, kind = name.rpartition(".")
        plain[name] = loss / weights[kind]
        names[name] = theirs[kind] + layer.replace("d", "_")
    return plain, names


def assert_five_training_steps(
    detector: Detector,
    batch: ImageBatch,
    targets: list[Target],
    golden: dict[str, Any],
    norm_tolerances: Sequence[float] = (1e-4, 2e-3),
) -> None:
    """Train as the reference did and compare the loss, and the gradient's norm of the first steps."""
    detector.train()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == int(golden["train_trainable_params"])
    backbone = [p for name, p in trained.items() if name.startswith("backbone.")]
    others = [p for name, p in trained.items() if not name.startswith("backbone.")]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": backbone, "lr": 1e-5}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=1e-4)
    criterion = Criterion()
    # After two steps rounding has grown to a few percent of the loss, and to a third of the gradient's norm (one thread
    # against two), so the norm is held to the reference only before.
    for step, tolerance in enumerate([1e-4, 2e-3, 0.03, 0.03, 0.03]):
        loss = torch.stack(list(criterion(detector(batch), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), 0.1)
        optimizer.step()
        assert loss.item() == pytest.approx(float(golden["train_total_loss"][step]), rel=tolerance)
        if step < len(norm_tolerances):
            wanted = float(golden["train_grad_norm"][step])
            assert norm.item() == pytest.approx(wanted, rel=norm_tolerances[step])
