"""Panoptic quality, compared with its definition written as loops over segments."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Int64
from panoptic_sets import CATEGORIES, Segment, choose_segments, draw_segments

from querybox.cli.evaluate import panoptic_table
from querybox.data import DetectionData, ImageRecord
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.panoptic_quality import panoptic_quality
from querybox.inference.detections import Detections
from querybox.masks import Rle

SIZE = (32, 44)
Picture = tuple[Int64[np.ndarray, "H W"], dict[int, Segment]]
LABELS = {category.id: label for label, category in enumerate(CATEGORIES)}


def record_of(image_id: int, picture: Picture) -> ImageRecord:
    ids, segments = picture
    masks = [Rle.of(ids == number) for number in segments]
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.png"),
        width=ids.shape[1],
        height=ids.shape[0],
        boxes_xyxy=np.array([mask.box_xyxy for mask in masks], dtype=np.float64).reshape(-1, 4),
        labels=np.array([LABELS[category] for category, _ in segments.values()], dtype=np.int64),
        crowd=np.array([crowd for _, crowd in segments.values()], dtype=bool),
        areas=np.array([mask.area for mask in masks], dtype=np.float64),
        masks=masks,
    )


def detections_of(picture: Picture) -> Detections:
    record = record_of(0, picture)
    return Detections(
        boxes_xyxy=torch.from_numpy(record.boxes_xyxy),
        scores=torch.linspace(1, 0.6, len(record.labels)),
        labels=torch.from_numpy(record.labels),
        categories=CATEGORIES,
        size=(record.height, record.width),
        masks=tuple(mask for mask in record.masks or () if isinstance(mask, Rle)),
    )


def disturbed(rng: np.random.Generator, picture: Picture) -> Picture:
    """Move the borders of an image's segments, and give some of them, also of crowds and void, another class."""
    ids, segments = picture
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    shift = rng.integers(-3, 4, 2)
    moved = ids[np.clip(rows + shift[0], 0, SIZE[0] - 1), np.clip(columns + shift[1], 0, SIZE[1] - 1)]
    invented = int(rng.integers(1, 2**24))
    moved = np.where((moved == 0) & (rows < 20), invented, moved)
    found: dict[int, Segment] = {}
    for number in np.unique(moved[moved > 0]).tolist():
        category = segments[number][0] if number in segments and rng.random() < 0.8 else 3
        if (moved == number).sum() >= 5:
            found[number] = (category, False)
        else:
            moved = np.where(moved == number, 0, moved)
    return moved, found


def problem(seed: int) -> tuple[list[Picture], list[Picture]]:
    rng = np.random.default_rng(seed)
    truth = [choose_segments(rng, draw_segments(rng, SIZE, 9), crowds=True) for _ in range(6)]
    return truth, [disturbed(rng, picture) for picture in truth]


def matches(category: int, truth: Picture, found: Picture) -> dict[tuple[int, int], float]:
    """Return the IoU of each pair of a segment of the data and a detected one of a class that match."""
    (ids, segments), (found_ids, found_segments) = truth, found
    ious = {}
    for number, segment in segments.items():
        for other, (found_class, _) in found_segments.items():
            if segment == (category, False) and found_class == category:
                pixels = (found_ids == other) & (ids != 0)
                iou = (pixels & (ids == number)).sum() / (pixels | (ids == number)).sum()
                if iou > 0.5:
                    ious[number, other] = float(iou)
    return ious


def by_definition(
    truth: list[Picture], found: list[Picture]
) -> tuple[dict[int, tuple[float, float, float]], int]:
    """Return PQ, SQ and RQ by category id, and the number of detected segments that are ignored."""
    result, num_ignored = {}, 0
    for category in (one.id for one in CATEGORIES):
        ious: list[float] = []
        false_positives = false_negatives = 0
        for one, other in zip(truth, found, strict=True):
            pairs = matches(category, one, other)
            ious += pairs.values()
            false_negatives += sum(segment == (category, False) for segment in one[1].values()) - len(pairs)
            crowds = [number for number, segment in one[1].items() if segment == (category, True)]
            matched = {number for _, number in pairs}
            for number, (found_class, _) in other[1].items():
                if found_class == category and number not in matched:
                    ignored = np.isin(one[0][other[0] == number], [0, *crowds]).mean() > 0.5
                    num_ignored += ignored
                    false_positives += not ignored
        total = len(ious) + 0.5 * false_positives + 0.5 * false_negatives
        sq = sum(ious) / len(ious) if ious else 0.0
        result[category] = (sum(ious) / total, sq, len(ious) / total) if total else (math.nan,) * 3
    return result, num_ignored


def data_of(truth: list[Picture]) -> DetectionData:
    images = tuple(record_of(number, picture) for number, picture in enumerate(truth))
    return DetectionData(source=Path("made"), categories=CATEGORIES, images=images, panoptic=True)


@pytest.mark.parametrize("seed", range(6))
def test_quality_is_that_of_the_definition(seed: int) -> None:
    truth, found = problem(seed)
    expected, num_ignored = by_definition(truth, found)
    assert num_ignored > 0  # void and crowds matter
    computed = panoptic_quality(
        data_of(truth), {number: detections_of(one) for number, one in enumerate(found)}, 0.5
    )
    values = np.array([expected[category.id] for category in CATEGORIES])
    np.testing.assert_allclose([quality for _, quality in computed.categories], values, rtol=0, atol=1e-12)
    assert [category for category, _ in computed.categories] == list(CATEGORIES)
    for name, chosen in {"all": [0, 1, 2, 3], "things": [0, 1], "stuff": [2, 3]}.items():
        np.testing.assert_allclose(computed.groups[name], values[chosen].mean(0), rtol=0, atol=1e-12)
    assert 0.1 < computed.groups["all"].PQ < 0.9


def test_the_segments_themselves_have_a_quality_of_one() -> None:
    truth, _ = problem(0)
    found = {
        number: detections_of((ids, {key: one for key, one in segments.items() if not one[1]}))
        for number, (ids, segments) in enumerate(truth)
    }
    quality = panoptic_quality(data_of(truth), found, 0.5)
    assert [*quality.groups["all"]] == [1, 1, 1]
    low = panoptic_quality(data_of(truth), found, 0.9)
    assert low.groups["all"].PQ < 1
    assert low.groups["all"].SQ == 1


def test_a_class_without_segments_does_not_count() -> None:
    ids = np.zeros(SIZE, dtype=np.int64)
    ids[:, :10] = 5
    picture: Picture = (ids, {5: (8, False)})
    quality = panoptic_quality(data_of([picture]), {0: detections_of(picture)}, 0.5)
    assert math.isnan(quality.groups["things"].PQ)
    assert [*quality.groups["all"]] == [*quality.groups["stuff"]] == [1, 1, 1]
    nothing = panoptic_quality(data_of([picture]), {0: detections_of((ids * 0, {}))}, 0.5)
    assert [*nothing.groups["stuff"]] == [0, 0, 0]


def test_an_evaluation_of_panoptic_data_has_it(tmp_path: Path) -> None:
    truth, found = problem(1)
    data = data_of(truth)
    detections = {number: detections_of(one) for number, one in enumerate(found)}
    evaluation = coco_metrics(data, detections)
    assert evaluation.panoptic is not None
    assert evaluation.panoptic.threshold == evaluation.operating_point.threshold
    evaluation.to_json(tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())["panoptic"]
    assert written["all"]["PQ"] == evaluation.panoptic.groups["all"].PQ
    assert [one["isthing"] for one in written["categories"]] == [1, 1, 0, 0]
    assert panoptic_table(evaluation.panoptic).row_count == 3 + len(CATEGORIES)
    assert coco_metrics(replace(data, panoptic=False), detections).panoptic is None
    boxes = {number: replace(one, masks=None) for number, one in detections.items()}
    assert coco_metrics(data, boxes).panoptic is None
