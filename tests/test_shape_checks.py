"""The shape checks of `shape_checks.py` are on, and bite."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from querybox.pixels import pad
from querybox.structures import Predictions, Target


def test_a_wrong_dtype_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        pad([torch.zeros(3, 4, 5)])


def test_sizes_agree_between_the_fields_of_a_structure() -> None:
    with pytest.raises(TypeCheckError):
        Predictions(logits=torch.zeros(1, 2, 3), boxes=torch.zeros(1, 3, 4))


def test_a_method_that_returns_self_is_checked() -> None:
    target = Target(boxes=torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.int64))
    assert target.to("cpu").labels.shape == (2,)
    with pytest.raises(TypeCheckError):
        target.to(3.5)  # type: ignore[arg-type]
