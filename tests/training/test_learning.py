"""That training learns, and always the same way."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from querybox.training import RunSettings, train

PLAIN = {"scales": [64], "crop": 0.0, "horizontal_flip": 0.0, "cache": True}

GOLDEN = [11.0286, 11.4952, 11.6176, 10.6801, 10.1753, 10.478, 9.97872, 10.3751]
"""Loss of each step with seed 0: change these numbers only with a change that is meant to change training."""


def test_the_loss_curve_is_the_golden_one(run_settings: Callable[..., RunSettings]) -> None:
    settings = {"epochs": len(GOLDEN), "batch_size": 8, "ema": 0.9, "warmup_steps": 3}
    folder = train(run_settings(model={"decoder_layers": 2}, **settings)).run_dir
    with (folder / "metrics.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[:3] == pytest.approx(GOLDEN[:3], rel=1e-4)
    assert losses == pytest.approx(GOLDEN, rel=1e-2)


@pytest.mark.usefixtures("without_shape_checks")
def test_eight_images_are_learnt_by_heart(run_settings: Callable[..., RunSettings], boxes_json: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 200,
        "batch_size": 8,
        "lr": 2e-3,
        "backbone_lr": 2e-3,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "evaluate_every": 200,
    }
    data = {**PLAIN, "val": str(boxes_json)}
    result = train(run_settings(model={"queries": 6, "dropout": 0.0}, data=data, **settings))
    assert result.metrics["AP50"] > 0.95
    assert (result.run_dir / "best.safetensors").is_file()
    assert (result.run_dir / "report.html").is_file()
