"""Checkpoints of trainings hold more than the weights, under names with prefixes; the right weights are found."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import TINY, random_state
from torch import Tensor

import querybox as qb
from querybox.checkpoints import native
from querybox.checkpoints.files import unwrap
from querybox.checkpoints.recognise import detection_part, recognise
from querybox.checkpoints.statements import stated_settings
from querybox.errors import CheckpointError
from querybox.models import DETR, DINO, RECIPES, RTDETR, DeformableDETR, Recipe, RTDETRv2
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.huggingface import HUGGINGFACE, HUGGINGFACE_DEFORMABLE
from querybox.models.layouts.idea import IDEA
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet3 import MMDET3_DEFORMABLE
from querybox.models.layouts.own import OWN
from querybox.models.layouts.rtdetr import HUGGINGFACE_RTDETR, LYUWENYU
from querybox.models.layouts.rtdetrv2 import LYUWENYU_V2

State = dict[str, Tensor]
FILE = Path("model.pth")


def names_of(kind: type[Recipe], layout: Layout) -> State:
    """The names of a model in a layout; values do not matter."""
    published: dict[type[Recipe], Recipe] = {
        RTDETR: RECIPES["rtdetr_r18"],
        RTDETRv2: RECIPES["rtdetrv2_s"],
    }
    recipe = published.get(kind) or kind.parse({**TINY, "width": 32})
    state = random_state(recipe, 3, tiny_backbone=True)
    return state if layout is OWN else layout.to_theirs({**state, **recipe.computed_tensors()})


def last_and_average() -> tuple[State, State]:
    last = names_of(DETR, FACEBOOK)
    return last, {name: tensor + 1 for name, tensor in last.items()}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def assert_same(actual: State, wanted: State) -> None:
    assert actual.keys() == wanted.keys()
    assert all(actual[name] is tensor or torch.equal(actual[name], tensor) for name, tensor in wanted.items())


Content = Callable[[State, State], dict[str, Any]]
WITH_AVERAGE: dict[str, Content] = {
    "RT-DETR": lambda last, average: {"model": last, "ema": {"module": average, "updates": 9}, "last_epoch": 3},
    "DINO": lambda last, average: {"model": last, "ema_model": average, "optimizer": {}, "epoch": 3},
    "torchvision": lambda last, average: {
        "model": last, "model_ema": {"n_averaged": torch.tensor(3), **prefixed("module.", average)},
    },
    "timm": lambda last, average: {"state_dict": last, "state_dict_ema": average, "arch": "detr"},
    "ema_state_dict": lambda last, average: {"state_dict": last, "ema_state_dict": average},
    "MMEngine, which exchanges the two": lambda last, average: {
        "state_dict": average, "ema_state_dict": {"steps": torch.tensor(9), **prefixed("module.", last)}, "meta": {},
    },
    "Lightning": lambda last, average: {
        "state_dict": prefixed("model.", last) | prefixed("ema_model.module.", average), "epoch": 3,
    },
    "flat": lambda last, average: last | prefixed("ema.module.", average),
    "a decay of the same name": lambda _, average: {"model": average, "ema": 0.999},
    "settings of the same name": lambda _, average: {"model": average, "ema": {"decay": 0.999}},
}  # fmt: skip


@pytest.mark.parametrize("kind", WITH_AVERAGE)
def test_averaged_weights_are_preferred(kind: str) -> None:
    last, average = last_and_average()
    tensors, _ = unwrap(FILE, WITH_AVERAGE[kind](last, average))
    assert_same(detection_part(tensors), average)


def test_it_is_logged_which_weights_are_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    last, average = last_and_average()
    unwrap(FILE, {"model": last, "ema_model": average})
    assert (
        "model.pth: read the averaged weights 'ema_model'; for those of the last step, save 'model'"
        in caplog.text
    )
    caplog.clear()
    unwrap(FILE, {"ema": {"module": average}})
    unwrap(FILE, {"model": last})
    assert caplog.text == ""
    detection_part(prefixed("model.", last) | prefixed("ema_model.", average))
    assert (
        f"read the averaged weights 'ema_model.'; dropped {len(last)} other tensors, in model" in caplog.text
    )


@pytest.mark.parametrize("key", ["model_state_dict", "model_state", "net", "module"])
def test_other_keys_of_weights(key: str) -> None:
    last, _ = last_and_average()
    tensors, _ = unwrap(FILE, {key: {"state_dict": last}, "optimizer_state_dict": {"state": {}}})
    assert_same(tensors, last)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [(DETR, FACEBOOK), (DETR, HUGGINGFACE), (DINO, IDEA), (DeformableDETR, MMDET3_DEFORMABLE)],
)
def test_the_prefix_of_an_unknown_wrapper_is_named(kind: type[Recipe], layout: Layout) -> None:
    with pytest.raises(
        CheckpointError, match=r"its names have the prefix 'student\.head\.', .* save the tensors under"
    ):
        detection_part(prefixed("student.head.", names_of(kind, layout)))


@pytest.mark.parametrize(
    ("name", "value", "supported"),
    [
        ("pe_temperatureW", 10000, "20.0"),
        ("transformer_activation", "gelu", "'relu'"),
        ("decoder_module_seq", ["ca", "sa", "ffn"], "['sa', 'ca', 'ffn']"),
    ],
)
def test_other_dinos_of_the_same_tensors_are_refused(name: str, value: object, supported: str) -> None:
    options = {"nheads": 8, "pe_temperatureH": 20, "pe_temperatureW": 20, "transformer_activation": "relu"}
    options |= {"decoder_module_seq": ["sa", "ca", "ffn"]}
    assert stated_settings({"args": options}, DINO) == {"heads": 8}
    message = f"options have {name}={value!r}; querybox supports only {supported} for DINO"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        stated_settings({"args": {**options, name: value}}, DINO)


def test_a_dict_that_contains_itself_is_no_checkpoint() -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="expected only names and dense tensors"):
        unwrap(FILE, content)


PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "detector.",
    "module._orig_mod.",
    "model.module.model.",
)
LAYOUTS = [
    (DETR, FACEBOOK),
    (DETR, HUGGINGFACE),
    (DETR, OWN),
    (DeformableDETR, HUGGINGFACE_DEFORMABLE),
    (DeformableDETR, MMDET3_DEFORMABLE),
    (DINO, IDEA),
    (RTDETR, LYUWENYU),
    (RTDETR, HUGGINGFACE_RTDETR),
    (RTDETRv2, LYUWENYU_V2),
]


@pytest.mark.parametrize(("kind", "layout"), LAYOUTS, ids=lambda each: getattr(each, "name", ""))
def test_prefixes_in_any_order_and_number(kind: type[Recipe], layout: Layout) -> None:
    """The names of Hugging Face begin with ``model.`` themselves."""
    state = names_of(kind, layout)
    for prefix in PREFIXES:
        part = detection_part(prefixed(prefix, state))
        assert part.keys() == state.keys(), prefix
        assert recognise(part) == (kind, layout)


def test_names_that_wrappers_insert() -> None:
    state = names_of(DETR, FACEBOOK)
    inside = {
        name.replace("transformer.", "transformer._orig_mod."): tensor for name, tensor in state.items()
    }
    assert_same(detection_part(inside), state)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_buffers_of_a_criterion_are_dropped(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    state = names_of(DETR, FACEBOOK)
    module = {**prefixed(prefix, state), "criterion.empty_weight": torch.ones(4)}
    assert_same(detection_part(module), state)
    assert "read the detector; dropped 1 other tensors, in criterion" in caplog.text


def test_a_dino_without_denoising(tmp_path: Path) -> None:
    detector = qb.Detector.from_recipe("dino_r50", num_classes=3, **{**TINY, "width": 32, "levels": 3})
    theirs = IDEA.to_theirs(detector.state_dict())
    torch.save(
        {"model": {name: theirs[name] for name in theirs if "label_enc" not in name}}, tmp_path / "dino.pth"
    )
    loaded = qb.Detector.load(tmp_path / "dino.pth", heads=2)
    wanted = detector.state_dict() | {"denoising.label.weight": torch.zeros(3, 32)}
    torch.testing.assert_close(loaded.state_dict(), wanted, rtol=0, atol=0)


def test_a_state_dict_of_querybox(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    detector = qb.Detector.from_recipe("detr_r18", num_classes=3, **TINY)
    torch.save(detector.state_dict(), tmp_path / "model.pth")
    loaded = qb.Detector.load(tmp_path / "model.pth", heads=2)
    assert loaded.recipe == detector.recipe
    assert loaded.preprocessing == detector.preprocessing
    torch.testing.assert_close(loaded.state_dict(), detector.state_dict(), rtol=0, atol=0)
    assert "assumed: the preprocessing and the settings of a new DETR" in caplog.text


def test_a_newer_format_is_told(tmp_path: Path) -> None:
    native.write(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, {}, mark="querybox-2")
    with pytest.raises(
        CheckpointError, match=r"has the format 'querybox-2' of a newer querybox, this one reads"
    ):
        qb.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_file_that_may_not_be_read_is_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CheckpointError, match=rf"{name}: no permission to read it"):
        qb.load(tmp_path / name)
