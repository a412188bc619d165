"""A panoptic dataset from the command line: evaluated, and predicted in the same format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from panoptic_sets import CATEGORIES, choose_segments, draw_segments, write_panoptic
from tiny_models import TINY

import querybox as qb
from querybox.data import read_dataset


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a detector with random masks of things and stuff, and a dataset of the same classes."""
    folder = tmp_path_factory.mktemp("panoptic")
    rng = np.random.default_rng(0)
    file = write_panoptic(
        folder, "val", [choose_segments(rng, draw_segments(rng, (40, 60), 7)) for _ in range(3)]
    )
    torch.manual_seed(0)
    detector = qb.Detector.from_recipe("dino_small", categories=CATEGORIES, masks=True, **TINY)
    detector.preprocessing = qb.Preprocessing(short_side=32, long_side=64)
    detector.save(folder / "model.safetensors")
    return folder / "model.safetensors", file


def test_evaluation_prints_the_quality(run: Any, panoptic: tuple[Path, Path], tmp_path: Path) -> None:
    code, out, err = run("evaluate", *panoptic)
    assert code == 0, err
    assert "panoptic quality at score" in " ".join(out.split())
    assert all(name in out for name in ("PQ", "things", "stuff", "tissue"))
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["panoptic"]
    assert metrics["images"] == 3
    assert f"{metrics['all']['PQ']:.3f}" in out
    report = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "<th>panoptic quality</th>" in report


def test_predictions_are_a_panoptic_dataset(run: Any, panoptic: tuple[Path, Path], tmp_path: Path) -> None:
    model, file = panoptic
    photos = file.parent.parent / "val"
    code, _, err = run("predict", model, photos, "--threshold", "0", "--format", "panoptic")
    assert (code, err) == (0, "")
    assert qb.load(model).categories == CATEGORIES
    content = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert len(content["images"]) == 3
    assert {one["category_id"] for entry in content["annotations"] for one in entry["segments_info"]} <= {
        category.id for category in CATEGORIES
    }
    for image in content["images"]:
        image["file_name"] = Path(image["file_name"]).name
    (tmp_path / "predictions" / "panoptic.json").write_text(json.dumps(content))
    (tmp_path / "predictions" / "images").symlink_to(photos)
    data = read_dataset(tmp_path / "predictions")
    assert data.panoptic
    assert [len(record.labels) for record in data.images] == [
        len(entry["segments_info"]) for entry in content["annotations"]
    ]
    assert sum(len(record.labels) for record in data.images) > 3


def test_boxes_alone_cannot_be_written(run: Any, model: Path, photos: Path) -> None:
    code, _, err = run("predict", model, photos / "images", "--format", "panoptic")
    assert code == 2
    assert err.startswith("ConfigError: panoptic: the detections have no masks; expected those of a detector")
