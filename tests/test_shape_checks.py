"""The shape checks of `shape_checks.py` are on, and bite."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError
from shape_checks import decorate, is_without_shapes
from torch import Tensor

from querybox.pixels import pad
from querybox.structures import Predictions, Target

Pairs = list[tuple[Int[Tensor, " N"], Int[Tensor, " N"]]]


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


def test_functions_without_shapes_are_told_from_those_with() -> None:
    def plain(number: int, texts: list[str] | None) -> None: ...

    def direct(tensor: Float[Tensor, "B 4"]) -> None: ...

    def by_an_alias(number: int) -> Pairs | None: ...

    def unknown(number: NotYetDefined) -> None: ...  # type: ignore[name-defined]

    assert is_without_shapes(plain)
    assert not any(map(is_without_shapes, (direct, by_an_alias, unknown, Target)))


def test_closures_are_checked_if_they_have_shapes() -> None:
    size = 4

    def plain(number: int) -> int:
        return number + size

    def with_shapes(tensor: Float[Tensor, "B 4"]) -> int:
        return len(tensor) + size

    assert decorate(plain) is plain
    checked = decorate(with_shapes)
    assert checked(torch.zeros(2, 4)) == 6
    with pytest.raises(TypeCheckError):
        checked(torch.zeros(2, 5))
