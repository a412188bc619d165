from __future__ import annotations

from collections.abc import Callable

import pytest

from querybox.errors import ConfigError
from querybox.training import RunSettings, TrainSettings
from querybox.training.duration import format_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), (" 2D ", 172800), (45, 45)],
)
def test_a_time_budget_is_written_as_people_write_it(text: str | int, seconds: float) -> None:
    assert TrainSettings.parse({"max_time": text}).max_time == seconds


@pytest.mark.parametrize("text", ["", "30", "half an hour", "1h 30m", "m", "-5m", -5, 0])
def test_what_is_no_time_budget_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError, match="max_time"):
        TrainSettings.parse({"max_time": text})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59, "59s"), (65, "1m05s"), (3599.7, "1h00m"), (5400, "1h30m")]
)
def test_times_are_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"learning_rate": 1}}, "unknown setting 'train.learning_rate'"),
        ({"train": {"epoch": 1}}, "Did you mean 'train.epochs'"),
        ({"train": {"precision": "fp8"}}, "train.precision"),
        ({"train": {"ema": 1.0}}, "train.ema"),
        ({"train": {"clip": 0}}, "train.clip"),
        ({"train": {"batch_size": 6, "accumulate": 4}}, "accumulate = 4 equal parts"),
        ({"trian": {}}, "Did you mean 'train'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunSettings.parse({"data": {"train": "x"}, **values})


def test_settings_survive_their_own_yaml(run_settings: Callable[..., RunSettings]) -> None:
    settings = run_settings(max_time="1h", milestones=[3, 4], freeze=["backbone"])
    assert RunSettings.parse(settings.model_dump(mode="json")) == settings
