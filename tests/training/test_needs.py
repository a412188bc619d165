"""A setting that has no effect without another is an error, and a value that the user did not give is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from querybox.errors import ConfigError
from querybox.models import KINDS, RECIPES
from querybox.needs import require_effect
from querybox.runfile import merge
from querybox.training.overrides import nested, read_settings
from querybox.training.run import prepare
from querybox.training.settings import NEEDS, Given, RunSettings
from querybox.training.start import check_effect, resolve


def resolved(**values: Any) -> RunSettings:
    base = {"recipe": "detr_r18", "data": {"train": "photos"}, "model": {"backbone_weights": None}}
    return checked(RunSettings.parse(merge(base, nested(values, "test"))))


def checked(settings: RunSettings, *overrides: str, resume: bool = False) -> RunSettings:
    result = resolve(settings)
    check_effect(Given(settings=settings, overrides=frozenset(overrides)), result, resume=resume)
    return result


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (
            {"data.overlap": 0.3},
            "setting data.overlap has no effect without data.tile: set it as well, or omit data",
        ),
        ({"data.crop_range": (300, 500), "data.crop": 0}, "data.crop_range has no effect without data.crop"),
        (
            {"data.mosaic_until": 0.5, "data.zoom_out": 0.5},
            "without data.mosaic or data.copy_paste or data.mixup",
        ),
        (
            {"data.strong_until": 0.9},
            "data.strong_until has no effect without data.photometric or data.zoom_out or",
        ),
        (
            {"data.val": "other", "data.val_fraction": 0.1},
            "data.val_fraction has no effect with data.val: omit one",
        ),
        (
            {"data.val": "none", "train.patience": 3},
            "train.patience has no effect with data.val=none: omit one of",
        ),
        ({"train.ema_warmup": 9}, "setting train.ema_warmup has no effect without train.ema: set it"),
        ({"train.ema_restart": 0.9}, "train.ema_restart has no effect without train.ema"),
        (
            {"train.ema": 0.99, "train.ema_restart": 0.9},
            "train.ema_restart has no effect with data.strong_until=1.0",
        ),
        (
            {"train.schedule": "cosine", "train.milestones": (3,)},
            "without train.schedule=step or train.schedule=flat_cosine",
        ),
        ({"train.sampling_lr": 1e-5}, "train.sampling_lr has no effect without model.points"),
        (
            {"train.backbone_lr": 3e-5, "train.freeze": ["backbone"]},
            "train.backbone_lr has no effect with train.freeze=backbone: omit one of them",
        ),
        (
            {"recipe": "rtdetr_r18", "model.frozen_batch_norms": True, "train.freeze": ["backbone"]},
            "model.frozen_batch_norms has no effect with train.freeze=backbone",
        ),
        (
            {"model.frozen_stride": 8, "train.freeze": ["encoder", "backbone"]},
            "model.frozen_stride has no effect with train.freeze=backbone",
        ),
        ({"model.mask_cost": 5.0}, "model.mask_cost has no effect without model.masks"),
        (
            {"recipe": "dino_r50", "model.matchability": True, "model.varifocal": True},
            "model.varifocal has no effect with model.matchability",
        ),
        ({"recipe": "dino_r50", "model.two_stage": False}, r"'two_stage' got False: input should be True"),
        ({"recipe": "dfine_n", "model.share_heads": True}, r"'share_heads' got True: input should be False"),
        (
            {"recipe": "rtdetr_r18", "train.ema": None, "train.ema_warmup": 9},
            "ema_warmup has no effect without train.ema",
        ),
        # A default that is written is the user's, too.
        (
            {"train.backbone_lr": 1e-5, "train.freeze": ["backbone"]},
            "train.backbone_lr has no effect with train.freeze=backbone: omit one of them",
        ),
        (
            {"recipe": "rtdetr_r18", "train.ema": None, "train.ema_warmup": 2000},
            "ema_warmup has no effect without train.ema",
        ),
        ({"data.overlap": 0.2, "model.mask_cost": 1.0}, r"data.overlap has .*; setting model.mask_cost has"),
        *(
            (
                {f"data.{name}": 0.5, "data.strong_from": 0.5, "data.mosaic_until": 0.5},
                rf"data.mosaic_until, like data.{name}, has no effect without data.mosaic_until>data.strong_from",
            )
            for name in ("mosaic", "mixup", "copy_paste")
        ),
        (
            {"recipe": "deim_dfine_n", "data.mosaic_until": 0.02},
            "setting data.mosaic_until has no effect without data.mosaic_until>data.strong_from",
        ),
        (
            {"data.mosaic": 0.5, "data.mosaic_until": 0.2, "data.strong_from": 0.5},
            r"^setting data.mosaic_until, like data.mosaic, has no effect without data.mosaic_until>data.strong_from: "
            "change one of these, or omit them$",
        ),
        # Those that have an effect, among them through values of the recipe, and those that are switched off.
        ({"data.overlap": 0.3, "data.tile": 640}, None),
        ({"data.overlap": 0.2, "data.tile": 640}, None),
        ({"train.backbone_lr": 3e-5, "train.freeze": ["encoder"]}, None),
        ({"train.freeze": ["backbone"]}, None),
        ({"recipe": "rtdetr_r18", "train.ema_warmup": 9}, None),
        ({"recipe": "rtdetr_r18", "train.ema": None}, None),
        ({"recipe": "dino_r50", "train.schedule": "cosine"}, None),
        ({"recipe": "dino_small", "model.matchability": True, "model.varifocal": False}, None),
        ({"data.mosaic": 0.5, "data.strong_from": 0.4, "data.mosaic_until": 0.5}, None),
        ({"recipe": "deim_dfine_n", "data.mosaic": 0.0, "data.mixup": 0.0}, None),
    ],
)
def test_settings_have_an_effect(values: dict[str, Any], error: str | None) -> None:
    if error is None:
        resolved(**values)
    else:
        with pytest.raises(ConfigError, match=error):
            resolved(**values)


@pytest.mark.parametrize("recipe", RECIPES)
def test_values_of_recipes_and_of_run_files_are_not_those_of_the_user(recipe: str) -> None:
    first = resolved(recipe=recipe, **{"train.ema": None, "data.crop": 0.0, "data.val": "none"})
    written = RunSettings.parse(first.model_dump(mode="json"))
    assert checked(written) == first
    plain = RunSettings.parse({**resolved().model_dump(mode="json"), "recipe": recipe, "model": {}})
    checked(plain)


def test_what_an_earlier_version_wrote_is_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    written = resolved(**{"data.val": "none"}).model_dump(mode="json")
    written["train"]["patience"] = 15  # by `recipe: auto` of version 0.1
    record = RunSettings.parse(written)
    assert record.is_record
    assert checked(record).train.patience == 15
    assert caplog.messages == [
        "run file: setting train.patience has no effect with data.val=none: omit one of them; it is ignored"
    ]
    assert not RunSettings.parse({"data": {"val": "none"}, "train": {"patience": 15}}).is_record


def test_a_run_whose_mosaics_end_before_they_begin_is_accepted_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    written = resolved(**{"data.mosaic": 0.5}).model_dump(mode="json")
    written["data"] |= {"strong_from": 0.5, "mosaic_until": 0.5}  # which earlier versions trained with
    record = RunSettings.parse(written)
    assert checked(record) == record
    assert (
        "setting data.mosaic_until, like data.mosaic, has no effect without data.mosaic_until>" in caplog.text
    )
    assert checked(record, "train.epochs", resume=True) == record


@pytest.mark.parametrize("resume", [False, True])
def test_an_override_of_what_a_run_wrote_has_an_effect(resume: bool) -> None:
    record = RunSettings.parse(resolved(**{"data.val": "none"}).model_dump(mode="json"))
    given = read_settings(
        record, {"patience": 15, "data": {"overlap": 0.2}, "ema_warmup": None}, where="train"
    )
    assert given.overrides == {"train.patience", "data.overlap", "train.ema_warmup"}
    with pytest.raises(
        ConfigError, match=r"^setting data.overlap has no .*; setting train.patience has no effect"
    ):
        check_effect(given, resolve(given.settings), resume=resume)
    checked(record, "data.cache", "train.epochs", resume=resume)


def test_a_resumed_run_is_not_refused_for_what_it_began_with() -> None:
    began = RunSettings.parse({"recipe": "detr_r18", "data": {"train": "photos", "overlap": 0.3}})
    checked(began, "train.epochs", resume=True)


def test_a_fraction_to_hold_out_has_no_effect_with_a_validation_split(
    boxes_json: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "boxes"
    shutil.copytree(boxes_json.parent, folder / "images", ignore=shutil.ignore_patterns("*.json"))
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copy(boxes_json, folder / "annotations" / f"{split}.json")
    data = {"train": str(folder), "val_fraction": 0.2, "workers": 0}
    values = {"recipe": "detr_r18", "model": {"backbone_weights": None}, "output": str(tmp_path / "run")}
    written = Given(settings=RunSettings.parse({**values, "data": data}))
    record = resolve(written.settings.replace(data={**data, "val_fraction": 0.1}))
    assert prepare(Given(settings=record), resume=False)[2].validation is not None
    typed = Given(settings=record, overrides=frozenset({"data.val_fraction"}))
    for each in (typed, written):
        with pytest.raises(
            ConfigError, match=r"data.val_fraction has no effect with the validation data in .*val"
        ):
            prepare(each, resume=False)


def test_the_table_names_settings() -> None:
    known = {*RunSettings.keys(), *(name for kind in KINDS.values() for name in kind.keys("model."))}
    for name, need in NEEDS:
        conditions = (each.removeprefix("not ").partition("=")[0] for each in need.split(" or "))
        others = {name for condition in conditions for name in condition.split(">")}
        assert {name, *others} <= known


def test_conditions() -> None:
    values = {"a": 1, "b": 0, "c": "x", "d": None, "f": ["x", "y"], "g": 0.5, "h": 0.6}
    for need in (
        "a",
        "not b",
        "c=x",
        "not c=y",
        "b or a",
        "not d",
        "not e",
        "d=None",
        "f=x",
        "not f=z",
        "h>g",
    ):
        require_effect("setting", [("a", need)], {"a"}, values)
        require_effect("setting", [("a", "b")], {"c"}, values)
    for need in ("b", "not a", "c=y", "not c=x", "b or d", "e", "f=z", "not f=y", "g>h", "g>g"):
        with pytest.raises(ConfigError, match="setting a has no effect with"):
            require_effect("setting", [("a", need)], {"a"}, values)
