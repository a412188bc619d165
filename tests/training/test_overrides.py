"""Settings by short and by full name, from Python and from the command line."""

from __future__ import annotations

from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import querybox
from querybox.errors import ConfigError
from querybox.training import RunSettings
from querybox.training.overrides import full_name, read_settings, short_names
from querybox.training.settings import Given


def test_every_setting_of_a_run_has_a_short_name_that_no_other_has() -> None:
    leaves = {name: full for name, full in short_names().items() if name not in RunSettings.model_fields}
    assert {full for full in leaves.values() if len(full) > 1} == set()
    assert leaves["epochs"] == ("train.epochs",)
    assert leaves["image_size"] == ("data.image_size",)
    assert leaves["queries"] == ("model.queries",)
    assert leaves["denoising"] == ("model.denoising",)  # of DINO alone


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("epochs", "train.epochs"),
        ("val", "data.val"),
        ("train", "train"),  # the section, not data.train
        ("output", "output"),
        ("train.lr", "train.lr"),
        ("model.nothing", "model.nothing"),  # unknown, which is reported with the other settings of the model
    ],
)
def test_names_are_completed(name: str, full: str) -> None:
    assert full_name(name, "here") == full


def test_keywords_take_precedence_over_the_run_file_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{data: {train: photos, image_size: 320}, train: {lr: 1, epochs: 2}}")
    overrides = {"train": {"epochs": 3, "clip": 0.5}, "train.lr": 3e-4, "epochs": 5, "output": Path("out")}
    settings = read_settings(tmp_path / "run.yaml", overrides, where="train").settings
    assert settings.data.image_size == 320
    assert settings.data.train == str(tmp_path / "photos")
    assert (settings.train.lr, settings.train.epochs, settings.train.clip) == (3e-4, 5, 0.5)
    assert settings.output == "out"


def test_settings_can_be_changed_too() -> None:
    settings = RunSettings.parse({"data": {"train": "photos"}, "train": {"epochs": 2}})
    changed = read_settings(settings, {"max_time": "10m", "recipe": "dino_small"}, where="train").settings
    assert (changed.recipe, changed.train.max_time, changed.train.epochs) == ("dino_small", 600, 2)
    assert changed.train.model_fields_set == {
        "epochs",
        "max_time",
    }  # the others keep the defaults of the recipe
    assert read_settings(settings, {}, where="train") == Given(settings=settings)


@pytest.mark.parametrize(
    ("target", "overrides", "message"),
    [
        (
            3,
            {},
            "train got an object of type int; expected the path of a dataset or a run file, or RunSettings: a str",
        ),
        (["photos"], {}, "train got an object of type list"),
        ("photos", {"epohcs": 5}, "train: unknown setting 'epohcs'. Did you mean 'train.epochs'?"),
        (
            "photos",
            {"zzz": 5},
            "train: unknown setting 'zzz'. The settings of a run are listed in its run.yaml.",
        ),
        ("photos", {"imgsz": 5}, "train: unknown setting 'imgsz'. Did you mean 'data.image_size'?"),
        ("photos", {"train.epohcs": 5}, "photos and train: unknown setting 'train.epohcs'. Did you mean"),
        ("photos", {"epochs": "many"}, "photos and train: setting 'train.epochs' got 'many'"),
        ("photos", {"max_time": "soon"}, "setting 'train.max_time' got 'soon': expected a duration such as"),
    ],
)
def test_wrong_arguments_are_errors_of_the_library(
    target: Any, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        unwrap(read_settings)(target, overrides, where="train")  # without the type checks under test
    assert message in str(error.value)


def test_an_ambiguous_name_has_to_be_written_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"lr": ("train.lr", "model.lr")}
    monkeypatch.setattr("querybox.training.overrides.short_names", lambda: names)
    with pytest.raises(
        ConfigError, match=r"here: setting 'lr' could be train\.lr or model\.lr; write it in full"
    ):
        full_name("lr", "here")


def test_a_run_from_keywords(boxes_json: Path, tmp_path: Path) -> None:
    from tiny_models import TRAINABLE

    result = querybox.train(
        boxes_json,
        recipe="detr_r50",
        model=TRAINABLE,
        image_size=64,
        workers=0,
        epochs=1,
        output=tmp_path / "run",
    )
    assert result.run_dir == tmp_path / "run"
    assert querybox.load(result.run_dir).predict(boxes_json.parent, threshold=0.0)


def test_devices_are_not_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.training.overrides.default_device", lambda: torch.device("cuda:0"))
    with pytest.raises(
        ConfigError, match=r"no setting 'device': the GPU that PyTorch finds is used, here cuda:0; to"
    ):
        full_name("device", "here")
