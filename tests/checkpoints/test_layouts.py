"""Public layouts: every name there and back, bit by bit, and the other names that files have had."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import random_state
from torch import Tensor

from querybox import Detector
from querybox.checkpoints import coco
from querybox.checkpoints.blueprint import restore
from querybox.checkpoints.read import read_checkpoint
from querybox.checkpoints.recognise import detection_part, recognise
from querybox.errors import CheckpointError
from querybox.models import DETR, ConditionalDETR
from querybox.models.layouts.conditional import ATTEN4VIS
from querybox.models.layouts.facebook import FACEBOOK
from querybox.models.layouts.huggingface import HUGGINGFACE
from querybox.models.layouts.layout import Layout
from querybox.models.layouts.mmdet2 import MMDET2
from querybox.models.layouts.mmdet3 import MMDET3

LAYOUTS = (FACEBOOK, MMDET2, MMDET3, HUGGINGFACE)
TINY = {"width": 16, "heads": 2, "feedforward": 24, "encoder_layers": 1, "decoder_layers": 2, "queries": 5}


def state(**settings: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Detector.from_recipe("detr_r18", num_classes=3, **{**TINY, **settings}).state_dict()


def renamed(tensors: dict[str, Tensor], *rules: tuple[str, str]) -> dict[str, Tensor]:
    for pattern, name in rules:
        assert any(re.search(pattern, each) for each in tensors), pattern
        tensors = {re.sub(pattern, name, each): tensor for each, tensor in tensors.items()}
    return tensors


def assert_same(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("position", ["sine", "learned"])
@pytest.mark.parametrize(("one", "other"), list(product(LAYOUTS, LAYOUTS)), ids=lambda layout: layout.name)
def test_every_pair_of_layouts_there_and_back(one: Layout, other: Layout, position: str) -> None:
    ours = state(position=position)
    theirs = one.to_theirs(ours)
    assert recognise(theirs) == (DETR, one)
    assert_same(one.to_ours(theirs), ours)
    assert_same(one.to_theirs(other.to_ours(other.to_theirs(one.to_ours(theirs)))), theirs)


@pytest.mark.parametrize("layout", [FACEBOOK, MMDET2], ids=lambda layout: layout.name)
def test_pre_norm_there_and_back(layout: Layout) -> None:
    ours = state(norm_first=True)
    assert_same(layout.to_ours(layout.to_theirs(ours)), ours)


def test_what_a_layout_has_no_name_for_is_listed() -> None:
    with pytest.raises(
        CheckpointError, match=r"MMDetection 3.x has no name for encoder.norm.weight, encoder"
    ):
        MMDET3.to_theirs(state(norm_first=True))


def test_early_names_of_mmdetection() -> None:
    ours = state()
    early = renamed(
        MMDET2.to_theirs(ours),
        (r"\.attentions\.0\.", ".self_attn."),
        (r"\.attentions\.1\.", ".multihead_attn."),
        (r"\.ffns\.0\.", ".ffn."),
        (r"\.decoder\.post_norm\.", ".decoder.norm."),
    )
    assert recognise(early) == (DETR, MMDET2)
    assert_same(MMDET2.to_ours(early), ours)


def test_names_of_transformers_in_memory() -> None:
    ours = state()
    memory = renamed(
        HUGGINGFACE.to_theirs(ours),
        (r"\.conv_encoder\.", "."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.fc(\d)\.", r".mlp.fc\1."),
    )
    assert recognise(memory) == (DETR, HUGGINGFACE)
    assert_same(HUGGINGFACE.to_ours(memory), ours)


def test_names_without_timm() -> None:
    ours = state()

    def stage(match: re.Match[str]) -> str:
        return f"model.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}."

    def step(match: re.Match[str]) -> str:
        return f"layer.{int(match[2]) - 1}.{'convolution' if match[1] == 'conv' else 'normalization'}."

    plain = {
        re.sub(r"(?<=\d\.)(conv|bn)(\d)\.", step, re.sub(r"model\.layer(\d)\.(\d+)\.", stage, name)): tensor
        for name, tensor in HUGGINGFACE.to_theirs(ours).items()
    }
    plain = renamed(
        plain,
        (r"downsample\.0", "shortcut.convolution"),
        (r"downsample\.1", "shortcut.normalization"),
        (r"model\.conv1", "model.embedder.embedder.convolution"),
        (r"model\.bn1", "model.embedder.embedder.normalization"),
    )
    assert_same(HUGGINGFACE.to_ours(plain), ours)


def test_a_part_of_a_checkpoint_is_renamed() -> None:
    head = {"decoder.class_head.weight": torch.ones(2, 3)}
    assert HUGGINGFACE.to_theirs(head).keys() == {"class_labels_classifier.weight"}


def mask_head(
    width: int = 128, heads: int = 8, channels: tuple[int, ...] = (256, 128, 64)
) -> dict[str, Tensor]:
    """The tensors of facebookresearch's ``DETRsegm`` beside the detector, for maps of stride 16, 8 and 4."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("q_linear", "k_linear"):
        shapes[f"bbox_attention.{name}.weight"] = (width, width)
        shapes[f"bbox_attention.{name}.bias"] = (width,)
    inputs = width + heads
    for number, outputs in enumerate((inputs, width // 2, width // 4, width // 8, width // 16), 1):
        shapes[f"mask_head.lay{number}.weight"] = (outputs, inputs, 3, 3)
        for name in (f"lay{number}.bias", f"gn{number}.weight", f"gn{number}.bias"):
            shapes[f"mask_head.{name}"] = (outputs,)
        inputs = outputs
    shapes["mask_head.out_lay.weight"], shapes["mask_head.out_lay.bias"] = (1, inputs, 3, 3), (1,)
    for number, inputs in enumerate(channels, 1):
        outputs = width // 2**number
        shapes[f"mask_head.adapter{number}.weight"] = (outputs, inputs, 1, 1)
        shapes[f"mask_head.adapter{number}.bias"] = (outputs,)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_panoptic_model(wrapper: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = DETR(**{**TINY, "width": 128, "heads": 8, "backbone": "resnet18.tv_in1k"})
    detector = FACEBOOK.to_theirs(random_state(recipe, 250))
    head = mask_head()
    model = {f"detr.{name}": tensor for name, tensor in detector.items()} | head
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in model.items()}
    assert_same(detection_part(wrapped), detector | head)
    torch.save({"model": wrapped}, tmp_path / "panoptic.pth")
    checkpoint = read_checkpoint(tmp_path / "panoptic.pth")
    assert "dropped" not in caplog.text
    loaded = restore(checkpoint.blueprint, checkpoint.state)
    assert loaded.mask_head is not None
    names = [category.name for category in loaded.categories]
    assert (len(names), names[0], names[79], names[80], names[-1]) == (
        133, "person", "toothbrush", "banner", "rug-merged",
    )  # fmt: skip
    assert [loaded.class_rows[label] for label in (0, 79, 80, 132)] == [1, 90, 92, 200]
    assert [category.id for category in loaded.categories] == list(loaded.class_rows)
    assert loaded.recipe is not None
    assert len(loaded.recipe.unused_rows) == 250 - 133
    assert_same(FACEBOOK.to_theirs(checkpoint.state), model)


def test_the_mask_head_of_a_relative_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    recipe = ConditionalDETR(**TINY)
    theirs = ATTEN4VIS.to_theirs(random_state(recipe, 3, tiny_backbone=True))
    wrapped = {f"detr.{name}": tensor for name, tensor in theirs.items()} | mask_head()
    assert_same(detection_part(wrapped), theirs)
    assert f"dropped {len(mask_head())} tensors of a segmentation head" in caplog.text


def test_strangers_are_named() -> None:
    theirs = FACEBOOK.to_theirs(state())
    with pytest.raises(CheckpointError, match=r"facebookresearch does not know transformer.level_embed"):
        FACEBOOK.to_ours({**theirs, "transformer.level_embed": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"not a checkpoint of DETR or a relative: .*query_embed.weight.*fc.weight"
    ):
        recognise({"fc.weight": torch.ones(1)})


def test_coco_has_80_classes_and_11_unused_rows() -> None:
    assert len(coco.CATEGORIES) == 80
    assert coco.UNUSED_ROWS == (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
    assert (coco.CATEGORIES[0].id, coco.CATEGORIES[-1].id) == (1, 90)
    assert len(coco.STUFF) == 53
