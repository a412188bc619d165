"""Faults of annotations that predictions show: shifted boxes, and objects of the validation data that are missing."""

from __future__ import annotations

from typing import Any

import pytest
from run_records import FAILED, MISSING, OFFSET, RESIZED, SHIFTED, SHORT, UNLOCATED, make_run, split

from querybox.diagnosis.diagnose import examine
from querybox.diagnosis.run import Run


def test_what_differs_and_why() -> None:
    run = make_run(**SHIFTED)
    assert names(run)[0] == "shifted_boxes"
    (finding,) = (each for each in examine(run) if each.name == "shifted_boxes")
    assert finding.explains == pytest.approx(0.5 / 0.9)
    assert finding.evidence["horizontal shift, pixels"] == 20
    assert "padded or cropped" in finding.cure


@pytest.mark.parametrize(
    ("fault", "run"),
    [
        ("overfitting", {"best_iou": 0.3, "history": {"loss_iou": [0.2] * 9}}),
        ("loose_boxes", UNLOCATED),
        ("faulty_boxes", {"training": split(faulty_boxes=500), "history": FAILED}),  # cut at the border
        ("different_sizes", RESIZED),
    ],
)
def test_shifted_boxes_are_nothing_else(fault: str, run: dict[str, Any]) -> None:
    assert fault in names(make_run(**run))
    found = names(make_run(**{**run, "AP": 0.1, "offset": OFFSET}))
    assert "shifted_boxes" in found
    assert fault not in found


@pytest.mark.parametrize("size", [50.0, 150.0])
def test_boxes_of_another_size_are_not_overfitting(size: float) -> None:
    """As where the boxes of one part are in pixels of resized images."""
    run = make_run(**{**RESIZED, "validation": split(median_size=size)})
    assert names(run)[:2] == ["different_sizes", "overfitting"]
    assert names(make_run(**{**RESIZED, "history": SHORT}))[0] == "too_few_steps"
    assert "different_sizes" not in names(make_run(**RESIZED, training=split(median_size=70.0)))


@pytest.mark.parametrize(
    "change",
    [
        {"validation": split(objects={"cat": 600, "dog": 100})},  # about as many as in training
        {"background": 1.0},  # errors
        {"background": 20.0},  # of a detector that has not learned the number of objects
        {"covered": 0.4},  # that does not find those that are annotated
        {"background": None},
    ],
)
def test_objects_are_missing_only_if_the_detector_finds_the_others(change: dict[str, Any]) -> None:
    assert "missing_objects" not in names(make_run(**{**MISSING, **change}))


def names(run: Run) -> list[str]:
    return [finding.name for finding in examine(run)]
