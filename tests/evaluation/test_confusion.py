from __future__ import annotations

import math

import pytest
from small_evaluations import CORNER, LEFT, RIGHT, data_of, found, image

from querybox.evaluation.confusion import best_operating_point
from querybox.evaluation.evaluate import coco_metrics


def test_counts_what_is_taken_for_what() -> None:
    data = data_of(image(1, (0, LEFT, False), (1, RIGHT, False), (1, CORNER, False)))
    result = best_operating_point(
        data, {1: found((0.75, 0, LEFT), (0.75, 0, RIGHT), (0.75, 1, [60.0, 60.0, 90.0, 90.0]))}
    )
    #       as cat, as dog, not found
    expected = [[1, 0, 0], [1, 0, 1], [0, 1, 0]]
    assert result.confusion.tolist() == expected
    assert (result.precision, result.recall, result.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_own_class_goes_before_another_class() -> None:
    """A better scored box of another class does not take the object from one of its own."""
    data = data_of(image(1, (0, LEFT, False)))
    result = best_operating_point(data, {1: found((0.75, 1, LEFT), (0.5, 0, LEFT))})
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_each_object_is_found_once_and_by_the_best_score() -> None:
    data = data_of(image(1, (0, LEFT, False)))
    shifted = [2.0, 0.0, 42.0, 40.0]
    result = best_operating_point(data, {1: found((0.75, 0, shifted), (0.75, 0, LEFT))})
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_threshold_has_the_best_f1() -> None:
    data = data_of(image(1, (0, LEFT, False), (0, RIGHT, False)), image(2))
    detections = {
        1: found((0.875, 0, LEFT), (0.5, 0, RIGHT), (0.25, 0, CORNER)),
        2: found((0.625, 1, LEFT), (0.125, 1, LEFT)),
    }
    # F1 from the best score down: 2/3, 2/4, 4/5, 4/6, 4/7
    result = best_operating_point(data, detections)
    assert result.threshold == 0.5
    assert result.f1 == pytest.approx(4 / 5)
    assert result.image_f1 == pytest.approx({1: 1.0, 2: 0.0})


def test_scores_of_other_models_may_be_in_any_order() -> None:
    data = data_of(image(1, (0, LEFT, False), (0, RIGHT, False)))
    result = coco_metrics(data, {1: found((0.25, 0, CORNER), (0.5, 0, RIGHT), (0.875, 0, LEFT))})
    assert (result.operating_point.threshold, result.operating_point.f1) == (0.5, 1.0)
    assert result.detections[1].scores.tolist() == [0.875, 0.5, 0.25]


def test_threshold_does_not_cut_through_equal_scores() -> None:
    data = data_of(image(1, (0, LEFT, False)))
    ties = found((0.5, 0, LEFT), (0.5, 0, CORNER), (0.5, 0, RIGHT))
    result = best_operating_point(data, {1: ties})
    assert result.threshold == 0.5
    assert result.f1 == pytest.approx(2 / 4)


def test_detections_on_a_crowd_of_their_class_are_ignored() -> None:
    data = data_of(image(1, (0, [0.0, 0.0, 90.0, 90.0], True), (0, LEFT, False)))
    inside, inside_too = (0.5, 0, [10.0, 50.0, 20.0, 60.0]), (0.5, 0, [70.0, 70.0, 80.0, 80.0])
    result = best_operating_point(data, {1: found((0.75, 0, LEFT), inside, inside_too, (0.5, 1, CORNER))})
    assert result.confusion[:, 0].tolist() == [1, 0, 0]
    assert result.confusion.sum() == 1 + (result.threshold <= 0.5)


def test_empty_images() -> None:
    data = data_of(image(1), image(2))
    result = best_operating_point(data, {1: found(), 2: found((0.75, 0, LEFT))})
    assert result.image_f1[1] == 1.0
    assert math.isnan(result.f1)
    assert math.isnan(result.recall)
    assert result.threshold == 0.5


def test_nothing_found() -> None:
    result = best_operating_point(data_of(image(1, (0, LEFT, False))), {1: found()})
    assert math.isnan(result.precision)
    assert (result.recall, result.f1) == (0.0, 0.0)
    assert result.confusion.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
