"""The whole way on COCO images and their 80 classes, with a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from report_pages import without_charts
from tiny_models import TRAINABLE

import querybox as qb
from querybox.training import RunSettings

SAMPLE = Path(__file__).parent.parent / "data" / "coco_sample"
CATEGORIES = 80


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The sample with all of COCO's classes: ids with gaps, 1 to 90."""
    folder = shutil.copytree(SAMPLE, tmp_path / "coco")
    for file in folder.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        known = {category["id"]: category["name"] for category in content["categories"]}
        unused = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        ids = [number for number in range(1, 91) if number not in unused]
        content["categories"] = [
            {"id": number, "name": known.get(number, f"class {number}")} for number in ids
        ]
        file.write_text(json.dumps(content))
    return folder


def test_trains_resumes_evaluates_and_predicts(coco: Path, tmp_path: Path) -> None:
    values = {
        "recipe": "detr_r50",
        "model": {**TRAINABLE, "queries": 100},
        "data": {"train": str(coco), "image_size": 96, "workers": 0},
        "train": {"epochs": 1, "batch_size": 2},
        "output": str(tmp_path / "run"),
    }
    with without_charts():  # which the resumed run draws
        first = qb.train(RunSettings.parse(values))
    resumed = qb.train(RunSettings.parse({**values, "train": {"epochs": 2, "batch_size": 2}}), resume=True)
    assert (first.run_dir / "metrics.csv").read_text().count("\n") == 3  # the heads, and a row for each epoch

    detector = resumed.detector
    assert len(detector.categories) == CATEGORIES
    assert detector.preprocessing.short_side == 96
    evaluation = qb.evaluate(detector, coco, split="val")
    assert evaluation.metrics["AP"] >= 0  # next to nothing can be learnt from three images
    assert (first.run_dir / "report.html").is_file()

    pictures = sorted((coco / "val2017").glob("*.jpg"))
    found = detector.predict(pictures, threshold=0.0)
    assert [len(each) for each in found] == [100] * len(pictures)
    results = [box for each, number in zip(found, range(3), strict=True) for box in each.to_coco(number)]
    assert {box["category_id"] for box in results} <= {category.id for category in detector.categories}
