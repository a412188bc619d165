"""Checkpoints of MMDetection 3.x contain their config as text; it states what tensors do not show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PUBLIC

from querybox import Detector
from querybox.checkpoints.mmdet_config import MAX_LENGTH, read_config
from querybox.checkpoints.statements import stated_preprocessing, stated_settings
from querybox.errors import CheckpointError, ConfigError
from querybox.models import DETR, DINO, DeformableDETR
from querybox.models.layouts.mmdet3 import MMDET3
from querybox.structures import Preprocessing

USUAL = Preprocessing(resizing="mmdet")
CONFIG = """
backend_args = None
model = dict(
    backbone=dict(depth=50, dilations=[1, 1, 1, 1], strides=(1, 2, 2, 2, ), style='pytorch', type='ResNet'),
    data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53, ], std=[58.395, 57.12, 57.375, ]),
    encoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(act_cfg=dict(type='ReLU'), embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
            self_attn_cfg=dict(dropout=0.0, embed_dims=256, num_levels=4)),
        num_layers=6),
    num_queries=900,
    positional_encoding=dict(normalize=True, num_feats=128, offset=0.0, temperature=20),
    bbox_head=dict(loss_cls=dict(class_weight=tensor([1.0000, 0.1000]))),
    type='DINO')
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'backbone.norm': dict(lr_mult=0.1)}), type='OptimWrapper')
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(1333, 800, ), type='Resize'),
    dict(type='PackDetInputs'),
]
"""
"""Parts of the text that MMEngine writes for DINO."""


def metadata(text: object) -> dict[str, Any]:
    return {"meta": {"cfg": text, "dataset_meta": {"classes": ("cat",)}}}


def changed(old: str, new: str) -> dict[str, Any]:
    assert old in CONFIG
    return metadata(CONFIG.replace(old, new))


def test_settings_are_read() -> None:
    known = {"heads": 8, "dilation": False, "dropout": 0.0, "queries": 900}
    assert stated_settings(metadata(CONFIG), DINO) == known
    assert stated_settings(changed("'ReLU'", "'torch.nn.modules.activation.ReLU'"), DINO) == known
    other = changed("dict(dropout=0.0,", "dict(num_heads=4,")
    assert stated_settings(other, DINO) == {**known, "heads": 4}
    assert stated_preprocessing(USUAL, metadata(CONFIG)) == USUAL


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        # dino-4scale_r50_improved has the tensors of DINO and the positions of Deformable DETR.
        ("temperature=20", "temperature=10000", DINO, "has temperature=10000; querybox supports only 20.0 for DINO"),
        ("offset=0.0", "offset=-0.5", DINO, "has offset=-0.5; querybox supports only 0.0"),
        ("temperature=20", "temperature=10000", DeformableDETR, "has offset=0.0; querybox supports only -0.5"),
        ("temperature=20", "temperature=20", DETR, "has temperature=20; querybox supports only 10000"),
        ("[1, 1, 1, 1]", "(1, 1, 1, 2)", DINO, "'backbone' has dilations=(1, 1, 1, 2)"),
        ("style='pytorch'", "style='caffe'", DINO, "'backbone' has style='caffe'"),
        ("bgr_to_rgb=True", "bgr_to_rgb=False", DINO, "'data_preprocessor' has bgr_to_rgb=False"),
        ("type='ReLU'", "type='GELU'", DINO, "'encoder.layer_cfg.ffn_cfg.act_cfg' has type='GELU'"),
        ("encoder=", "decoder=dict(layer_cfg=dict(ffn_cfg=dict(act_cfg=dict(type='SiLU')))), encoder=", DINO,
         "'decoder.layer_cfg.ffn_cfg.act_cfg' has type='SiLU'; querybox supports only 'ReLU'"),
    ],
)  # fmt: skip
def test_other_models_of_the_same_tensors_are_refused(
    old: str, new: str, kind: type[DETR], message: str
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        stated_settings(changed(old, new), kind)


def test_images_are_treated_as_the_config_says() -> None:
    small = stated_preprocessing(USUAL, changed("(1333, 800, )", "[512, 640]"))
    assert small == Preprocessing(short_side=512, long_side=640, resizing="mmdet")
    stretched = stated_preprocessing(
        USUAL, changed("keep_ratio=True, scale=(1333, 800, )", "scale=(640, 480)")
    )
    assert stretched == Preprocessing(short_side=480, long_side=640, resizing="stretch")
    unscaled = changed("mean=[123.675, 116.28, 103.53, ]", "mean=[0, 0, 0]")
    assert stated_preprocessing(USUAL, unscaled).mean == (0, 0, 0)
    with pytest.raises((CheckpointError, ConfigError), match="MMDetection config in its 'meta'"):
        stated_preprocessing(USUAL, changed("std=[58.395,", "std=['x',"))


@pytest.mark.parametrize(
    "text", [None, 3, "", "model = (", "model = __import__('os')", "model = 3", "(" * 9999, "model = [" * 99]
)
def test_other_text_states_nothing(text: object) -> None:
    assert stated_settings(metadata(text), DINO) == {}
    assert stated_preprocessing(USUAL, metadata(text)) == USUAL


def test_a_text_that_is_longer_than_any_config_is_not_parsed() -> None:
    text = "a = 1\n".ljust(MAX_LENGTH)
    assert read_config(metadata(text)) == {"a": 1}
    assert read_config(metadata(text + " ")) == {}


def test_nothing_is_executed() -> None:
    lines = (
        "a = dict(b=print(1), c=-1)",
        "d = dict(dict(e=1))",
        "f = [dict(g=tensor([1.0])), {1: 'x', **a}]",
        "h += 1",
        "i = i.j",
    )
    assert read_config(metadata("\n".join(lines))) == {
        "a": {"b": None, "c": -1},
        "d": None,
        "f": [{"g": None}, {1: "x"}],
        "i": None,
    }


def test_a_file_with_its_config_is_loaded_without_assumptions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", num_classes=2, **{**PUBLIC, "heads": 2})
    text = CONFIG.replace("temperature=20", "temperature=10000").replace("num_levels=4", "num_heads=2")
    meta = {"cfg": text, "dataset_meta": {"classes": ["cat", "dog"]}}
    torch.save(
        {"state_dict": MMDET3.to_theirs(detector.state_dict()), "meta": meta}, tmp_path / "epoch_12.pth"
    )
    loaded = Detector.load(tmp_path / "epoch_12.pth")
    assert detector.recipe is not None
    assert loaded.recipe == detector.recipe.replace(dropout=0.0)
    with pytest.raises(ConfigError, match="got dilation=True, but the file says False; omit dilation"):
        Detector.load(tmp_path / "epoch_12.pth", dilation=True)
