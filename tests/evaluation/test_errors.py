from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_evaluations import LEFT, RIGHT, Row, data_of, found, image

from querybox.data.records import ImageRecord
from querybox.evaluation.confusion import assign, overlap
from querybox.evaluation.errors import LETTERS, REASONS, Mistakes, mistakes_in
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections

CAT, DOG = 0, 1
HALF_OF_LEFT = [0.0, 0.0, 40.0, 16.0]  # IoU 0.4
"""A box that is too small for `LEFT`."""


def explain(record: ImageRecord, counted: Detections) -> Mistakes:
    return mistakes_in(record, counted, assign(record, counted))


def reasons(record: ImageRecord, *rows: Row) -> tuple[list[str], list[str]]:
    """The reasons of the misses, in the order of the objects, and of the false alarms, in that of the detections."""
    mistakes = explain(record, found(*rows))
    return [one.reason for one in mistakes.misses], [one.reason for one in mistakes.false_alarms]


ONE_CAT = image(1, (CAT, LEFT, False))


@pytest.mark.parametrize(
    ("rows", "misses", "alarms"),
    [
        ([(0.9, CAT, LEFT)], [], []),
        ([], ["not found"], []),
        ([(0.9, DOG, LEFT)], ["wrong class"], ["wrong class"]),
        ([(0.9, CAT, HALF_OF_LEFT)], ["loose box"], ["loose box"]),
        ([(0.9, DOG, HALF_OF_LEFT)], ["wrong class and loose box"], ["wrong class and loose box"]),
        ([(0.9, CAT, RIGHT)], ["not found"], ["background"]),
        ([(0.9, CAT, LEFT), (0.8, CAT, LEFT)], [], ["duplicate"]),
        ([(0.9, CAT, LEFT), (0.8, DOG, LEFT)], [], ["wrong class"]),
        ([(0.9, CAT, LEFT), (0.8, CAT, HALF_OF_LEFT)], [], ["loose box"]),
        ([(0.9, CAT, LEFT), (0.8, DOG, HALF_OF_LEFT)], [], ["wrong class and loose box"]),
        # One false alarm excuses one object, and an object is excused once: by its own class before another.
        (
            [(0.9, DOG, HALF_OF_LEFT), (0.8, CAT, HALF_OF_LEFT)],
            ["loose box"],
            ["wrong class and loose box", "loose box"],
        ),
        ([(0.9, CAT, HALF_OF_LEFT), (0.8, DOG, LEFT)], ["wrong class"], ["loose box", "wrong class"]),
    ],
)  # fmt: skip
def test_each_reason(rows: list[Row], misses: list[str], alarms: list[str]) -> None:
    assert reasons(ONE_CAT, *rows) == (misses, alarms)


def test_thresholds_are_included() -> None:
    at_half, at_tenth = [0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 40.0, 4.0]
    assert reasons(ONE_CAT, (0.9, DOG, at_half)) == (["wrong class"], ["wrong class"])
    assert reasons(ONE_CAT, (0.9, CAT, at_tenth)) == (["loose box"], ["loose box"])
    assert reasons(ONE_CAT, (0.9, CAT, [0.0, 0.0, 40.0, 3.9])) == (["not found"], ["background"])


def test_a_false_alarm_excuses_one_object() -> None:
    between = image(1, (CAT, [0.0, 0.0, 40.0, 40.0], False), (CAT, [40.0, 0.0, 80.0, 40.0], False))
    assert reasons(between, (0.9, CAT, [15.0, 0.0, 55.0, 40.0])) == (
        ["loose box", "not found"],
        ["loose box"],
    )
    mistakes = explain(between, found((0.9, CAT, [15.0, 0.0, 55.0, 40.0])))
    assert (mistakes.misses[0].detection, mistakes.false_alarms[0].object) == (0, 0)


def test_an_empty_image() -> None:
    assert reasons(image(1), (0.9, CAT, LEFT)) == ([], ["background"])
    assert reasons(image(1)) == ([], [])


def test_crowds_excuse_nothing_and_are_not_missed() -> None:
    crowd = image(1, (CAT, LEFT, True))
    assert reasons(crowd) == ([], [])
    mistakes = explain(crowd, found((0.9, CAT, LEFT), (0.8, DOG, LEFT)))
    assert mistakes.ignored == 1
    assert [(one.detection, one.reason) for one in mistakes.false_alarms] == [(1, "background")]


def test_the_letters_tell_the_reasons_apart() -> None:
    assert set(LETTERS) == set(REASONS)
    assert len(set(LETTERS.values())) == len(REASONS)


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
def test_counts_add_up_and_agree_with_the_confusion_matrix(
    drawn: list[tuple[list[tuple[int, list[float], bool]], list[Row]]],
) -> None:
    data = data_of(*(image(number, *objects) for number, (objects, _) in enumerate(drawn)))
    evaluation = coco_metrics(data, {number: found(*rows) for number, (_, rows) in enumerate(drawn)})
    confusion, threshold = evaluation.agreement.confusion, evaluation.agreement.threshold
    right = sum(each.right for each in evaluation.mistakes.values())
    confused = int(confusion[:-1, :-1].sum() - np.trace(confusion))
    assert right == np.trace(confusion)
    assert right + sum(evaluation.misses.values()) == evaluation.objects
    assert evaluation.misses["wrong class"] == confused
    assert sum(evaluation.false_alarms.values()) == confusion[:, :-1].sum() - right
    assert evaluation.false_alarms["wrong class"] >= confused
    for record in data.images:
        mistakes = evaluation.mistakes[record.id]
        counted = evaluation.detections[record.id].above(threshold)
        assert mistakes.right + mistakes.ignored + len(mistakes.false_alarms) == len(counted)
        check(record, counted)


def check(record: ImageRecord, counted: Detections) -> None:
    """Hold every reason against its definition, one pair after the other."""
    mistakes, iou = explain(record, counted), overlap(record, counted)
    missed = {miss.object for miss in mistakes.misses}
    alarms = {alarm.detection: alarm for alarm in mistakes.false_alarms}
    assert len(missed) == len(mistakes.misses)
    assert len(alarms) == len(mistakes.false_alarms)
    assert not record.crowd[sorted(missed)].any()
    for alarm in mistakes.false_alarms:
        pairs = [
            (iou[alarm.detection, g], record.labels[g] == counted.labels[alarm.detection], g in missed)
            for g in np.flatnonzero(~record.crowd)
        ]
        own, other = (
            max((share for share, same, _ in pairs if same == kind), default=0.0) for kind in (True, False)
        )
        confused = any(share >= 0.5 and not same and free for share, same, free in pairs)
        possible = {
            "duplicate": own >= 0.5,
            "wrong class": other >= 0.5 and (own < 0.5 or confused),
            "loose box": 0.1 <= own < 0.5 and other < 0.5,
            "wrong class and loose box": own < 0.1 <= other < 0.5,
            "background": max(own, other) < 0.1,
        }
        assert possible[alarm.reason]
        assert not any(share >= 0.5 and same and free for share, same, free in pairs), (
            "it would have found it"
        )
    excuses = Counter(miss.detection for miss in mistakes.misses if miss.detection is not None)
    assert all(count == 1 for count in excuses.values())
    for miss in mistakes.misses:
        if miss.detection is not None:
            assert (alarms[miss.detection].reason, alarms[miss.detection].object) == (
                miss.reason,
                miss.object,
            )
        else:
            own_class = counted.labels.numpy() == record.labels[miss.object]
            unused = [
                n
                for n, alarm in alarms.items()
                if alarm.reason == "loose box" and n not in excuses and own_class[n]
            ]
            assert all(iou[n, miss.object] < 0.1 for n in unused), "a free loose box would excuse it"
