from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_pages import CATEGORIES, make_data, read

from querybox.data.records import DetectionData
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections
from querybox.masks import Rle
from querybox.report import write_report
from querybox.report.worst_masks import draw_mask_pair, surroundings, worst_masks


def with_masks(data: DetectionData) -> dict[int, Detections]:
    """Give the objects masks, and find them with masks that are wider by three pixels times the id of the image."""
    detections = {}
    for record in data.images:
        mask = np.zeros((48, 64), dtype=bool)
        mask[5:40, 5:15] = True
        record.masks = tuple(Rle.of(mask) for _ in record.labels) or None
        mask[5:40, 5 : 15 + 3 * record.id] = True
        detections[record.id] = Detections(
            boxes_xyxy=torch.from_numpy(record.boxes_xyxy),
            scores=torch.full((len(record.labels),), 0.75),
            labels=torch.from_numpy(record.labels),
            categories=CATEGORIES,
            size=(48, 64),
            masks=tuple(Rle.of(mask) for _ in record.labels),
        )
    return detections


def test_the_worst_masks_are_drawn(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    detections = with_masks(data)
    data.images[4].masks = None
    data.images[3].path.unlink()
    evaluation = coco_metrics(data, detections)
    worst = worst_masks(evaluation, data, 10)
    assert [pair.record.id for pair in worst] == [5, 3, 2, 1]  # 0 has no object, and 4 no mask of it
    assert [pair.iou for pair in worst] == pytest.approx([10 / 25, 10 / 19, 10 / 16, 10 / 13])
    write_report(tmp_path, evaluation, data, worst=2)
    page = read(tmp_path)
    assert re.search(r"<b>5\.png: [^:]+, score 0\.75: mask IoU 0\.400, boundary IoU 0\.\d{3}\.", page.text)
    assert re.search(r"<b>3\.png: [^:]+: mask IoU 0\.526, .*<b>3\.png: no such image file", page.text)
    assert "boundary AP" in page.text


def test_masks_are_drawn_on_the_part_of_the_image_around_them(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    pair = worst_masks(coco_metrics(data, with_masks(data)), data, 1)[0]
    part = surroundings(pair)
    assert part == (
        0,
        0,
        35,
        47,
    )  # columns 5 to 30 and rows 5 to 40, and a fifth more on each side, inside the image
    example = draw_mask_pair(pair)
    colours = []
    for url in example.urls.values():
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert picture.size == (35 * 9, 47 * 9)
        colours.append(np.asarray(picture)[20 * 9, 22 * 9].astype(int))  # in the detection's mask alone
    assert list(example.urls) == ["Object", "Detection"]
    assert np.abs(colours[0] - [90, 50, 120]).max() < 10
    assert np.abs(colours[0] - colours[1]).max() > 20


def test_empty_masks_are_shown_on_the_whole_image(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    empty = Rle.of(np.zeros((48, 64), dtype=bool))
    (pair,) = worst_masks(coco_metrics(data, with_masks(data)), data, 1)
    pair = replace(pair, object=empty, detection=empty)
    assert surroundings(pair) == (0, 0, 64, 48)
    assert draw_mask_pair(pair).caption.endswith("boundary IoU 0.000.")
