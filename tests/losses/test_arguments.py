"""Arguments of losses and matcher: their ranges, and the whole texts of the errors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch

from querybox.errors import ConfigError
from querybox.losses.classification import CrossEntropyLoss, FocalLoss, checked_classification
from querybox.losses.criterion import Criterion, num_pairs
from querybox.losses.matcher import HungarianMatcher
from querybox.structures import DetectorOutput, Matches, Predictions, Target

LARGEST: dict[tuple[type[Any], str], float] = {
    (CrossEntropyLoss, "no_object_weight"): 1e6,
    (FocalLoss, "alpha"): 1,
    (FocalLoss, "gamma"): 100,
    **{(Criterion, f"{name}_weight"): 1e6 for name in ("class", "box", "giou")},
    **{(HungarianMatcher, f"{name}_cost"): 1e6 for name in ("class", "box", "giou")},
}


@pytest.fixture(autouse=True)
def _without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the library's own checks see arguments of other types."""
    for module in ("criterion", "matcher"):
        monkeypatch.setattr(
            f"querybox.losses.{module}.checked_classification", inspect.unwrap(checked_classification)
        )
    monkeypatch.setattr(Criterion, "check_inputs", inspect.unwrap(Criterion.check_inputs))
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(("make", "name"), LARGEST)
def test_numbers_have_a_range(make: type[Any], name: str) -> None:
    largest = LARGEST[make, name]
    for value in (0, 0.5, largest):
        make(**{name: value})
    for wrong in (-1e-3, largest + 0.5, float("nan"), "1"):
        with pytest.raises(ConfigError) as caught:
            make(**{name: wrong})
        assert str(caught.value) == f"{make.__name__} got {name}={wrong!r}; expected 0 to {largest}"


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [
        (Criterion, "matcher", "a HungarianMatcher"),
        (Criterion, "auxiliary", "True or False for auxiliary"),
        (Criterion, "class_agnostic_proposals", "True or False for class_agnostic_proposals"),
        (Criterion, "masks", "a MaskLosses"),
        (Criterion, "classification", "a CrossEntropyLoss or a FocalLoss"),
        (HungarianMatcher, "classification", "a CrossEntropyLoss or a FocalLoss"),
    ],
)
def test_objects_have_a_type(make: type[Any], name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{name: 3})
    assert str(caught.value) == f"{make.__name__} got an object of type int; expected {expected}"


def test_matcher_and_classification_are_for_the_same_scores() -> None:
    with pytest.raises(ConfigError) as caught:
        Criterion(HungarianMatcher(), classification=FocalLoss())
    assert str(caught.value) == (
        "Criterion got FocalLoss and a matcher with CrossEntropyLoss; expected both with a no-object class, or both "
        "without: give the matcher the same classification"
    )


@pytest.mark.parametrize(
    ("classification", "no_object", "scores"),
    [
        (CrossEntropyLoss(), False, "a sigmoid for each class"),
        (FocalLoss(), True, "a softmax with a no-object class"),
    ],
)
def test_scores_are_those_of_the_criterion(
    classification: CrossEntropyLoss | FocalLoss, no_object: bool, scores: str
) -> None:
    criterion = Criterion(classification=classification)
    layer = Predictions(logits=torch.zeros(1, 2, 3), boxes=torch.full((1, 2, 4), 0.5), no_object=no_object)
    target = Target(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([0]))
    with pytest.raises(ConfigError) as caught:
        criterion(DetectorOutput(layers=(layer,)), [target])
    name = type(classification).__name__
    assert str(caught.value) == (
        f"the criterion has {name}, but the scores of the detector are {scores}; use detector.criterion()"
    )


def test_the_criterion_takes_an_output_and_a_target_for_each_image() -> None:
    wrong: Any = 3
    with pytest.raises(ConfigError) as caught:
        Criterion()(wrong, [])
    assert str(caught.value) == (
        "the criterion got an object of type int; expected the DetectorOutput of a detector"
    )
    layer = Predictions(logits=torch.zeros(2, 2, 3), boxes=torch.full((2, 2, 4), 0.5))
    target = Target(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([0]))
    with pytest.raises(ConfigError) as caught:
        Criterion()(DetectorOutput(layers=(layer,)), [target])
    assert str(caught.value) == "the criterion got 1 targets for 2 images; expected one for each"


def test_pairs_of_a_part_are_extrapolated_to_the_update() -> None:
    """Two pairs for one object in this part, five objects in the update; no object in this part, no pair."""
    one = Target(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([0]))
    none = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    index = torch.tensor([0, 0])
    pairs = Matches(image=index, query=index[None], object=index[None])
    assert num_pairs(pairs, [one], [2, 3], like=torch.zeros(1)) == 10
    empty = Matches(image=index[:0], query=index[None, :0], object=index[None, :0])
    assert num_pairs(empty, [none], [2, 3], like=torch.zeros(1)) == 0
