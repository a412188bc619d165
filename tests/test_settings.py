"""Settings are strict, and their errors say what to write instead."""

from __future__ import annotations

import pytest
from pydantic import Field

from querybox.errors import ConfigError
from querybox.settings import Settings


class Inner(Settings):
    layers: int = Field(default=6, gt=0)
    dropout: float = 0.1


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


def test_settings_do_not_change() -> None:
    settings = Inner()
    with pytest.raises(
        ConfigError, match=r"Inner: got a new value for 'layers', .*: settings\.replace\(layers=\.\.\.\)"
    ):
        settings.layers = 3  # type: ignore[misc]
    assert settings.layers == 6
