"""The metrics of masks are those of pycocotools' ``segm``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mask_evaluations import SIDE, by_pycocotools, problem

from querybox.cli.evaluate import metrics_tables
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.result import METRICS
from querybox.masks import Rle
from querybox.polygons import Polygons
from querybox.report.write import metric_rows


@pytest.mark.parametrize("seed", range(6))
def test_mask_metrics_are_those_of_pycocotools(seed: int) -> None:
    data, detections = problem(seed)
    stats, precision = by_pycocotools(data, detections)
    masks = coco_metrics(data, detections).masks
    assert masks is not None
    np.testing.assert_allclose([masks.metrics[name] for name in METRICS], stats, rtol=0, atol=1e-9)
    np.testing.assert_allclose(masks.precision, precision, rtol=0, atol=1e-9)
    per_class = [one.AP for one in masks.categories]
    np.testing.assert_allclose(per_class, precision.mean((0, 1)), rtol=0, atol=1e-9)
    assert masks.metrics["AP"] > 0.05  # there is something to agree on
    assert masks.images == 12


def test_perfect_masks_have_an_ap_of_one(tmp_path: Path) -> None:
    data, detections = problem(0)
    for image in data.images:
        real = np.flatnonzero(~image.crowd)
        regions = [image.masks[index] for index in real] if image.masks else []
        masks = tuple(Rle.of_polygons(one, (SIDE, SIDE)) for one in regions if isinstance(one, Polygons))
        detections[image.id] = replace(
            detections[image.id],
            boxes_xyxy=torch.zeros(len(masks), 4),
            scores=torch.ones(len(masks)),
            labels=torch.from_numpy(image.labels[real]),
            masks=masks,
        )
    evaluation = coco_metrics(data, detections)
    assert evaluation.masks is not None
    assert evaluation.masks.metrics["AP"] == 1
    assert evaluation.metrics["AP"] < 1  # the boxes are zeros
    evaluation.to_json(tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())["masks"]
    assert written["metrics"]["AP50"] == 1
    assert [one["AP"] for one in written["categories"]] == [1, 1]
    assert metric_rows(evaluation)[0][2] == "1.000"
    assert metric_rows(evaluation)[0][3] == "1.000"
    assert [one["AP50"] for one in written["boundary"]["categories"]] == [1, 1]
    boxes, masks_table, _ = metrics_tables(evaluation)
    assert str(boxes.title) == "42 objects in 12 images"
    assert str(masks_table.title) == "42 masks in 12 images"


def test_images_with_objects_without_masks_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    data, detections = problem(1)
    image = next(image for image in data.images if len(image.labels) > 1)
    image.masks = (None, *(image.masks or ())[1:])
    masks = coco_metrics(data, detections).masks
    assert masks is not None
    assert masks.images == 11
    assert "1 of 12 images have objects without a mask" in caplog.text
    rest = data.only({other.id for other in data.images if other is not image})
    stats, _ = by_pycocotools(rest, {key: one for key, one in detections.items() if key != image.id})
    np.testing.assert_allclose([masks.metrics[name] for name in METRICS], stats, rtol=0, atol=1e-9)


def test_boxes_alone_have_no_mask_metrics() -> None:
    data, detections = problem(2)
    without = {key: replace(one, masks=None) for key, one in detections.items()}
    assert coco_metrics(data, without).masks is None
    for image in data.images:
        image.masks = None
    assert coco_metrics(data, detections).masks is None
