from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from querybox import Detector, precision
from querybox.data import DataSettings
from querybox.diagnosis.schedule import USUAL_CLIP, USUAL_DECAY
from querybox.duration import format_duration
from querybox.errors import ConfigError
from querybox.models import DEIM_RECIPES, RECIPES
from querybox.training import RunSettings, TrainSettings, processes
from querybox.training.processes import training_device
from querybox.training.start import resolve


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
        ({"train": {"batch_size": 6, "accumulate": 4}}, "is not a multiple of accumulate = 4"),
        ({"trian": {}}, "Did you mean 'train'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunSettings.parse({"data": {"train": "x"}, **values})


def test_alternatives_of_a_setting_are_told_in_one() -> None:
    """Without the names that pydantic gives them."""
    with pytest.raises(ConfigError) as caught:
        RunSettings.parse(
            {"data": {"train": "x", "depth": "deep"}, "train": {"accumulate": "maybe"}}, where="run.yaml"
        )
    assert str(caught.value) == (
        "run.yaml: setting 'data.depth' got 'deep': input should be a valid integer, unable to parse string as an "
        "integer, or input should be a valid tuple; setting 'train.accumulate' got 'maybe': input should be a valid "
        "integer, unable to parse string as an integer, or input should be 'auto'"
    )


def test_settings_survive_their_own_yaml(run_settings: Callable[..., RunSettings]) -> None:
    settings = run_settings(max_time="1h", milestones=[3, 4], freeze=["backbone"])
    assert RunSettings.parse(settings.model_dump(mode="json")) == settings


DEFORMABLE = {
    "epochs": 50,
    "milestones": (40,),
    "batch_size": 32,
    "lr": 2e-4,
    "backbone_lr": 2e-5,
    "sampling_lr": 2e-5,
}
CONDITIONAL = {"epochs": 50, "milestones": (40,)}
DINO = {"epochs": 12, "milestones": (11,)}
RTDETR = {"epochs": 72, "milestones": (), "decay_norms": False, "ema": 0.9999, "ema_warmup": 2000}
RTDETRV2 = {**RTDETR, "warmup_steps": 2000}
DFINE = {
    **RTDETR,
    "epochs": 80,
    "batch_size": 32,
    "lr": 2.5e-4,
    "backbone_lr": 1.25e-5,
    "weight_decay": 1.25e-4,
    "warmup_steps": 500,
    "ema_warmup": 1000,
    "ema_restart": 0.9999,
}
SSD = {"photometric": 0.5, "zoom_out": 0.5, "iou_crop": 0.8}
PHASES = {
    "rtdetrv2_s": (3, 0),
    "rtdetrv2_ms": (3, 3),
    "rtdetrv2_m": (3, 3),
    "rtdetrv2_l": (1, 3),
    "rtdetrv2_x": (1, 3),
    "dfine_n": (12, 0),
    "dfine_s": (12, 20),
    "dfine_m": (12, 6),
    "dfine_l": (8, 4),
    "dfine_x": (8, 3),
}
"""Epochs without strong augmentation at the end, and how often multi-scale batches have 640 pixels."""


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in DEIM_RECIPES])
def test_a_recipe_is_trained_as_published_unless_it_is_for_few_images(
    monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    monkeypatch.setattr("querybox.training.start.available_cpus", lambda: 2)
    published: dict[str, Any] = {
        "deformable_detr_r50": DEFORMABLE,
        "deformable_detr_r50_refine": DEFORMABLE,
        "deformable_detr_r50_two_stage": DEFORMABLE,
        "dino_r50": DINO,
        "conditional_detr_r50": CONDITIONAL,
        "conditional_detr_r50_dc5": CONDITIONAL,
        **dict.fromkeys((name for name in RECIPES if name.startswith("rtdetr_r")), RTDETR),
        "rtdetr_r101": {**RTDETR, "backbone_lr": 1e-6},
        "rtdetrv2_s": {**RTDETRV2, "epochs": 120, "backbone_lr": 1e-4},
        "rtdetrv2_ms": {**RTDETRV2, "epochs": 120, "backbone_lr": 5e-5},
        "rtdetrv2_m": {**RTDETRV2, "epochs": 84},
        "rtdetrv2_l": RTDETRV2,
        "rtdetrv2_x": {**RTDETRV2, "backbone_lr": 1e-6},
        "dfine_n": {
            **DFINE,
            "epochs": 160,
            "batch_size": 128,
            "lr": 8e-4,
            "backbone_lr": 4e-4,
            "weight_decay": 1e-4,
        },
        "dfine_s": {**DFINE, "epochs": 132, "lr": 2e-4, "backbone_lr": 1e-4, "weight_decay": 1e-4},
        "dfine_m": {**DFINE, "epochs": 132, "lr": 2e-4, "backbone_lr": 2e-5, "weight_decay": 1e-4},
        "dfine_l": DFINE,
        "dfine_x": {**DFINE, "backbone_lr": 2.5e-6, "ema_restart": 0.9998},
    }
    resolved = resolve(RunSettings.parse({"recipe": recipe, "data": {"train": "x"}}))
    assert resolved.train == TrainSettings(**published.get(recipe, {}))
    data: dict[str, Any] = {}
    if recipe.startswith(("rtdetr_r", "rtdetrv2", "dfine")) and not recipe.endswith("small"):
        plain, multi_scale = PHASES.get(recipe, (0, 3))
        epochs = resolved.train.epochs
        data = {"image_size": 640, "stretch": True, "crop": 0.0, "multi_scale": multi_scale, **SSD}
        data |= {"strong_until": (epochs - plain) / epochs}
    assert resolved.data == DataSettings(train="x", **data)


def test_settings_that_were_given_overrule_those_of_the_kind() -> None:
    given = RunSettings.parse({"recipe": "dino_r50", "data": {"train": "x"}, "train": {"lr": 0.5}})
    resolved = resolve(given.replace(output="elsewhere"))
    assert resolved.train == TrainSettings(**DINO, lr=0.5)
    # A value that is the general default overrules as well.
    given = RunSettings.parse({"recipe": "dino_r50", "data": {"train": "x"}, "train": {"epochs": 150}})
    assert resolve(given).train.epochs == 150
    # What a run wrote down repeats it.
    assert resolve(RunSettings.parse(resolved.model_dump(mode="json"))) == resolved


def test_the_kind_is_that_of_the_weights_where_no_recipe_is_named(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {
        "width": 32,
        "queries": 5,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "backbone": "resnet18.tv_in1k",
    }
    Detector.from_recipe("dino_r50", num_classes=2, **tiny).save(tmp_path / "dino.safetensors")
    settings = RunSettings.parse({"weights": str(tmp_path / "dino.safetensors"), "data": {"train": "x"}})
    assert resolve(settings).train == TrainSettings(**DINO)


@pytest.mark.parametrize(("native", "resolved"), [(True, "bf16"), (False, "float32")])
def test_a_run_has_the_precision_that_auto_resolves_to(
    native: bool,
    resolved: str,
    run_settings: Callable[..., RunSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda *_: native)
    assert resolve(run_settings(precision="auto")).train.precision == resolved


def test_processes_that_are_forced_onto_the_cpu_train_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "default_device", lambda: torch.device("cuda"))
    assert training_device() == torch.device("cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert training_device() == torch.device("cpu")


def test_workers_are_not_more_than_cpus_unless_set(
    run_settings: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = run_settings().replace(data={"train": "photos"})
    for cpus, expected in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr("querybox.training.start.available_cpus", lambda cpus=cpus: cpus)
        assert resolve(settings).data.workers == expected
    monkeypatch.setattr("querybox.training.start.available_cpus", lambda: 1)
    assert resolve(settings.replace(data={"train": "photos", "workers": 4})).data.workers == 4


@pytest.mark.parametrize("path", ["", "a\0b"])
@pytest.mark.parametrize("name", ["data.train", "data.val", "weights", "output"])
def test_a_path_is_neither_empty_nor_has_a_null_character(name: str, path: str) -> None:
    values: dict[str, Any] = {"data": {"train": "photos"}}
    section, _, leaf = name.rpartition(".")
    (values[section] if section else values)[leaf] = path
    with pytest.raises(ConfigError, match=re.escape(f"setting '{name}' got {path!r}")):
        RunSettings.parse(values)


def test_the_diagnosis_advises_the_defaults() -> None:
    defaults = TrainSettings()
    assert (defaults.weight_decay, defaults.clip) == (USUAL_DECAY, USUAL_CLIP)
