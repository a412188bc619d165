"""Settings are strict, and their errors say what to write instead."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from querybox.errors import ConfigError
from querybox.settings import Settings


class Inner(Settings):
    layers: int = Field(default=6, gt=0)
    dropout: float = 0.1


class Kinds(Settings):
    number: int | Literal["auto"] = "auto"
    numbers: tuple[float, ...] | None = None
    switch: bool | Literal["both"] = False
    anything: dict[str, Any] | None = None


class Range(Settings):
    low: float = 0
    high: float = 1
    sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; expected the smaller one first")
        return self


class WithRange(Settings):
    range: Range = Range()


class Outer(Settings):
    name: str
    inner: Inner = Inner()


def test_values_are_read_and_checked() -> None:
    assert Outer.parse({"name": "a", "inner": {"layers": 3}}).inner == Inner(layers=3)
    assert Inner().replace(layers=2).layers == 2
    assert list(Outer.keys()) == ["name", "inner", "inner.layers", "inner.dropout"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"name": "a", "inner": {"layer": 3}},
            r"unknown setting 'inner\.layer'\. Did you mean 'inner\.layers'\?",
        ),
        ({"name": "a", "zzz": 3}, r"unknown setting 'zzz'\. Known settings there: inner, name\."),
        (
            {"inner": {"zz": 3}, "name": "a"},
            r"unknown setting 'inner\.zz'\. .*: inner\.dropout, inner\.layers\.",
        ),
        (
            {"name": "a", "inner": {"layers": 0}},
            r"setting 'inner\.layers' got 0: input should be greater than 0",
        ),
        (
            {"name": "a", "inner": 3},
            r"setting 'inner' got 3; it is a group of settings: set one of inner\.dropout, inner\.layers$",
        ),
        ({}, "setting 'name' is missing"),
        (
            {"name": 3, "inner": {"dropout": "x"}},
            r"setting 'name' got 3: .*; setting 'inner\.dropout' got 'x': ",
        ),
    ],
)
def test_errors(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^run.yaml: {message}"):
        Outer.parse(values, where="run.yaml")


def test_true_and_false_are_not_numbers() -> None:
    """They are 1 and 0 in Python, and a learning rate of `true` would be 1."""
    kept = Kinds.parse({"switch": True, "anything": {"a": True}, "number": 1, "numbers": [0, 1]})
    assert (kept.switch, kept.anything, kept.number, kept.numbers) == (True, {"a": True}, 1, (0.0, 1.0))
    with pytest.raises(
        ConfigError,
        match=r"'number' got True: input should be a number; .*'numbers' got \[0\.5, False\]: input should be a number",
    ):
        Kinds.parse({"number": True, "numbers": [0.5, False]})


def test_settings_that_contradict_each_other_are_told_without_all_others() -> None:
    with pytest.raises(ConfigError, match=r"^run\.yaml: settings 'range': low is 3 and high 1; expected the"):
        WithRange.parse({"range": {"low": 3, "sizes": [4] * 99}}, "run.yaml")
    with pytest.raises(ConfigError, match=r"^low is 3 and high 1"):
        Range(low=3)


def test_an_invalid_item_does_not_make_a_list_too_short() -> None:
    with pytest.raises(ConfigError, match=r"^setting 'sizes\.0' got 0: input should be greater[^;]*$"):
        Range(sizes=(0,))
    with pytest.raises(ConfigError, match=r"'sizes' got \[\]: tuple should have at least 1 item"):
        Range.parse({"sizes": []})


def test_settings_do_not_change() -> None:
    settings = Inner()
    with pytest.raises(
        ConfigError, match=r"Inner: got a new value for 'layers', .*: settings\.replace\(layers=\.\.\.\)"
    ):
        settings.layers = 3  # type: ignore[misc]
    assert settings.layers == 6
