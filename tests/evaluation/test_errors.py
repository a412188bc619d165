from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_evaluations import LEFT, RIGHT, Row, data_of, found, image

from querybox.data.records import ImageRecord
from querybox.evaluation.confusion import assign
from querybox.evaluation.errors import (
    ABBREVIATIONS,
    FalseNegativeType,
    FalsePositiveType,
    ImageErrors,
    find_errors,
)
from querybox.evaluation.evaluate import coco_metrics
from querybox.evaluation.overlaps import pairwise_iou
from querybox.inference.detections import Detections

CAT, DOG = 0, 1
HALF_OF_LEFT = [0.0, 0.0, 40.0, 16.0]  # IoU 0.4
"""A box that is too small for `LEFT`."""


def errors_of(record: ImageRecord, counted: Detections) -> ImageErrors:
    return find_errors(record, assign(record, counted))


def error_types(record: ImageRecord, *rows: Row) -> tuple[list[str], list[str]]:
    """Error types of the false negatives, by object, and of the false positives, by detection."""
    errors = errors_of(record, found(*rows))
    return [one.error_type for one in errors.false_negatives], [
        one.error_type for one in errors.false_positives
    ]


ONE_CAT = image(1, (CAT, LEFT, False))


@pytest.mark.parametrize(
    ("rows", "negatives", "positives"),
    [
        ([(0.9, CAT, LEFT)], [], []),
        ([], ["missed"], []),
        ([(0.9, DOG, LEFT)], ["classification"], ["classification"]),
        ([(0.9, CAT, HALF_OF_LEFT)], ["localization"], ["localization"]),
        ([(0.9, DOG, HALF_OF_LEFT)], ["both"], ["both"]),
        ([(0.9, CAT, RIGHT)], ["missed"], ["background"]),
        ([(0.9, CAT, LEFT), (0.8, CAT, LEFT)], [], ["duplicate"]),
        ([(0.9, CAT, LEFT), (0.8, DOG, LEFT)], [], ["classification"]),
        ([(0.9, CAT, LEFT), (0.8, CAT, HALF_OF_LEFT)], [], ["localization"]),
        ([(0.9, CAT, LEFT), (0.8, DOG, HALF_OF_LEFT)], [], ["both"]),
        # A false positive covers one object, and an object is covered once: by its own class before another.
        (
            [(0.9, DOG, HALF_OF_LEFT), (0.8, CAT, HALF_OF_LEFT)],
            ["localization"],
            ["both", "localization"],
        ),
        ([(0.9, CAT, HALF_OF_LEFT), (0.8, DOG, LEFT)], ["classification"], ["localization", "classification"]),
    ],
)  # fmt: skip
def test_each_error_type(rows: list[Row], negatives: list[str], positives: list[str]) -> None:
    assert error_types(ONE_CAT, *rows) == (negatives, positives)


def test_thresholds_are_included() -> None:
    at_half, at_tenth = [0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 40.0, 4.0]
    assert error_types(ONE_CAT, (0.9, DOG, at_half)) == (["classification"], ["classification"])
    assert error_types(ONE_CAT, (0.9, CAT, at_tenth)) == (["localization"], ["localization"])
    assert error_types(ONE_CAT, (0.9, CAT, [0.0, 0.0, 40.0, 3.9])) == (["missed"], ["background"])


def test_a_false_positive_covers_one_object() -> None:
    between = image(1, (CAT, [0.0, 0.0, 40.0, 40.0], False), (CAT, [40.0, 0.0, 80.0, 40.0], False))
    assert error_types(between, (0.9, CAT, [15.0, 0.0, 55.0, 40.0])) == (
        ["localization", "missed"],
        ["localization"],
    )
    errors = errors_of(between, found((0.9, CAT, [15.0, 0.0, 55.0, 40.0])))
    assert (errors.false_negatives[0].detection, errors.false_positives[0].object) == (0, 0)


def test_an_empty_image() -> None:
    assert error_types(image(1), (0.9, CAT, LEFT)) == ([], ["background"])
    assert error_types(image(1)) == ([], [])


def test_crowds_cover_nothing_and_are_not_missed() -> None:
    crowd = image(1, (CAT, LEFT, True))
    assert error_types(crowd) == ([], [])
    errors = errors_of(crowd, found((0.9, CAT, LEFT), (0.8, DOG, LEFT)))
    assert errors.ignored == 1
    assert [(one.detection, one.error_type) for one in errors.false_positives] == [(1, "background")]


def test_abbreviations_are_distinct() -> None:
    assert set(ABBREVIATIONS) == {*get_args(FalseNegativeType), *get_args(FalsePositiveType)}
    assert len(set(ABBREVIATIONS.values())) == len(ABBREVIATIONS)


sides = st.tuples(
    *[st.integers(0, 6).map(lambda n: n * 10.0)] * 2, *[st.integers(1, 6).map(lambda n: n * 10.0)] * 2
)
boxes = sides.map(lambda side: [side[0], side[1], side[0] + side[2], side[1] + side[3]])
labels = st.sampled_from([CAT, DOG])
objects = st.lists(st.tuples(labels, boxes, st.sampled_from([False, False, False, True])), max_size=6)
rows = st.lists(st.tuples(st.integers(0, 8).map(lambda n: n / 8), labels, boxes), max_size=8).map(
    lambda drawn: sorted(drawn, key=lambda row: -row[0])
)
images = st.lists(st.tuples(objects, rows), min_size=1, max_size=3)


@given(images)
@settings(max_examples=200)
def test_counts_add_up_and_match_the_confusion_matrix(
    drawn: list[tuple[list[tuple[int, list[float], bool]], list[Row]]],
) -> None:
    data = data_of(*(image(number, *objects) for number, (objects, _) in enumerate(drawn)))
    evaluation = coco_metrics(data, {number: found(*rows) for number, (_, rows) in enumerate(drawn)})
    confusion, threshold = evaluation.operating_point.confusion, evaluation.operating_point.threshold
    right = sum(image.true_positives for image in evaluation.errors.values())
    confused = int(confusion[:-1, :-1].sum() - np.trace(confusion))
    assert right == np.trace(confusion)
    assert right + sum(evaluation.false_negatives.values()) == evaluation.objects
    assert evaluation.false_negatives["classification"] == confused
    assert sum(evaluation.false_positives.values()) == confusion[:, :-1].sum() - right
    assert evaluation.false_positives["classification"] >= confused
    for record in data.images:
        errors = evaluation.errors[record.id]
        counted = evaluation.detections[record.id].above(threshold)
        assert errors.true_positives + errors.ignored + len(errors.false_positives) == len(counted)
        check(record, counted)


def check(record: ImageRecord, counted: Detections) -> None:
    """Compare every error type with its definition, one pair after the other."""
    errors = errors_of(record, counted)
    iou = pairwise_iou(counted.boxes_xyxy.double().numpy(), record.boxes_xyxy, record.crowd)
    missed = {negative.object for negative in errors.false_negatives}
    positives = {positive.detection: positive for positive in errors.false_positives}
    assert len(missed) == len(errors.false_negatives)
    assert len(positives) == len(errors.false_positives)
    assert not record.crowd[sorted(missed)].any()
    for positive in errors.false_positives:
        pairs = [
            (iou[positive.detection, g], record.labels[g] == counted.labels[positive.detection], g in missed)
            for g in np.flatnonzero(~record.crowd)
        ]
        own, other = (
            max((share for share, same, _ in pairs if same == kind), default=0.0) for kind in (True, False)
        )
        confused = any(share >= 0.5 and not same and free for share, same, free in pairs)
        possible = {
            "duplicate": own >= 0.5,
            "classification": other >= 0.5 and (own < 0.5 or confused),
            "localization": 0.1 <= own < 0.5 and other < 0.5,
            "both": own < 0.1 <= other < 0.5,
            "background": max(own, other) < 0.1,
        }
        assert possible[positive.error_type]
        assert not any(share >= 0.5 and same and free for share, same, free in pairs), (
            "it would have found it"
        )
    covered = Counter(
        negative.detection for negative in errors.false_negatives if negative.detection is not None
    )
    assert all(count == 1 for count in covered.values())
    for negative in errors.false_negatives:
        if negative.detection is not None:
            assert (positives[negative.detection].error_type, positives[negative.detection].object) == (
                negative.error_type,
                negative.object,
            )
        else:
            own_class = counted.labels.numpy() == record.labels[negative.object]
            unused = [
                n
                for n, positive in positives.items()
                if positive.error_type == "localization" and n not in covered and own_class[n]
            ]
            assert all(iou[n, negative.object] < 0.1 for n in unused), (
                "a free localization error would cover it"
            )
