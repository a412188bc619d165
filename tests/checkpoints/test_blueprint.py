"""What cannot be loaded is not written; what is written is loaded as it was."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import PUBLIC, TINY
from torch import nn

import querybox as qb
from querybox.checkpoints import native
from querybox.errors import CheckpointError
from querybox.models.layouts.facebook import FACEBOOK
from querybox.modules.heads import ClassHead


@pytest.fixture
def detector() -> qb.Detector:
    return qb.Detector.from_recipe("detr_r18", categories=["cat", "dog"], **TINY).eval()


def new_head(detector: qb.Detector) -> None:
    detector.decoder.class_head = ClassHead(32, 5)


def new_class(detector: qb.Detector) -> None:
    detector.categories = (*detector.categories, qb.Category(id=2, name="new"))


def heads(detector: qb.Detector) -> None:
    assert detector.recipe is not None
    detector.recipe = detector.recipe.replace(heads=2)


def activation(detector: qb.Detector) -> None:
    assert isinstance(detector.decoder.box_head, nn.Sequential)
    detector.decoder.box_head[1] = nn.SiLU()


def extra_module(detector: qb.Detector) -> None:
    assert isinstance(detector.decoder.box_head, nn.Sequential)
    detector.decoder.box_head.append(nn.Tanh())


def own_forward(detector: qb.Detector) -> None:
    head: Any = detector.decoder.class_head
    plain = head.forward
    head.forward = lambda x: 2 * plain(x)


def weight(value: float) -> Callable[[qb.Detector], None]:
    def change(detector: qb.Detector) -> None:
        assert isinstance(detector.decoder.class_head, ClassHead)
        with torch.no_grad():
            detector.decoder.class_head.weight[0, 0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (new_head, r"class_head\.weight: expected \[3, 32\], got \[6, 32\]"),
        (new_class, r"class_head\.weight: expected \[4, 32\], got \[3, 32\]"),
        (weight(math.nan), r"1 tensors have NaN or infinite values: decoder\.class_head\.weight"),
        (heads, r"modules do not fit the recipe: encoder\.layers\.0\.self_attention\.heads is 4, expected 2"),
        (activation, r"modules do not fit the recipe: decoder\.box_head\.1 is SiLU, expected ReLU"),
        (extra_module, r"modules do not fit the recipe: decoder\.box_head\.5 is Tanh, expected none"),
        (own_forward, r"modules do not fit the recipe: decoder\.class_head\.forward was replaced"),
        (weight(-math.inf), r"1 tensors have NaN or infinite values: decoder\.class_head\.weight"),
    ],
)
def test_what_could_not_be_loaded_is_not_written(
    change: Callable[[qb.Detector], None], message: str, detector: qb.Detector, tmp_path: Path
) -> None:
    path = tmp_path / "best.safetensors"
    detector.save(path)
    before = path.read_bytes()
    change(detector)
    with pytest.raises(
        CheckpointError, match=rf"best\.safetensors: not written, .* loaded again: .*{message}"
    ):
        detector.save(path)
    assert path.read_bytes() == before


def test_a_new_head_with_its_classes_is_written(detector: qb.Detector, tmp_path: Path) -> None:
    new_head(detector)
    detector.categories = list("abcde")
    detector.save(tmp_path / "best.safetensors")
    loaded = qb.Detector.load(tmp_path / "best.safetensors")
    assert [category.name for category in loaded.categories] == list("abcde")
    torch.testing.assert_close(loaded.state_dict(), detector.state_dict(), rtol=0, atol=0)


@torch.inference_mode()
def test_what_a_backbone_computes_has_values(tmp_path: Path) -> None:
    """Such as the kernels with which some ResNets blur; files do not have them."""
    blurred = qb.Detector.from_recipe("detr_r18", num_classes=2, **{**TINY, "backbone": "resnetblur18"})
    blurred.save(tmp_path / "model.safetensors")
    state = torch.get_rng_state()
    loaded = qb.Detector.load(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(loaded.backbone(images), blurred.backbone.eval()(images), strict=True):
        assert torch.equal(ours, theirs)


def test_settings_that_matter_to_training_alone_may_differ(detector: qb.Detector, tmp_path: Path) -> None:
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    detector.save(tmp_path / "best.safetensors")


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization:DeprecationWarning", "ignore:torch.quantize_per_tensor"
)
def test_a_quantised_detector_is_not_written(detector: qb.Detector, tmp_path: Path) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(detector, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors: not written, because .* are not plain tensors, as after q"
    ):
        quantised.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode")
def test_a_path_that_is_not_utf8_is_told(detector: qb.Detector, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.safetensors")
    with pytest.raises(
        CheckpointError, match="is not UTF-8, as paths of safetensors files have to be; rename"
    ):
        detector.save(path)
    assert not list(tmp_path.iterdir())
    detector.save(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(path)
    with pytest.raises(
        CheckpointError, match="is not UTF-8, as paths of safetensors files have to be; rename"
    ):
        qb.load(path)


def test_a_weight_too_large_for_half_precision_is_not_written(detector: qb.Detector, tmp_path: Path) -> None:
    weight(1e5)(detector)
    detector.save(tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        detector.save(tmp_path / "half.safetensors", dtype=torch.float16)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((3,), math.nan), "1 tensors have NaN or infinite values"),
        (torch.full((3,), 1e300, dtype=torch.float64), "1 tensors have NaN or infinite values"),
        (torch.ones(3, dtype=torch.int8), r"bias: expected \[3\], got \[3\] of torch\.int8"),
        (torch.ones(3, dtype=torch.bool), r"bias: expected \[3\], got \[3\] of torch\.bool"),
        (torch.ones(3, dtype=torch.complex64), r"bias: expected \[3\], got \[3\] of torch\.complex64"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    value: torch.Tensor, message: str, detector: qb.Detector, tmp_path: Path
) -> None:
    detector.save(tmp_path / "model.safetensors")
    tensors, card = native.read(tmp_path / "model.safetensors")
    native.write(tmp_path / "bad.safetensors", {**tensors, "decoder.class_head.bias": value}, card)
    public = qb.Detector.from_recipe("detr_r18", categories=["cat", "dog"], **PUBLIC)
    torch.save(
        {"model": {**FACEBOOK.to_theirs(public.state_dict()), "class_embed.bias": value}},
        tmp_path / "bad.pth",
    )
    for name in ("bad.safetensors", "bad.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}: .*{message}"):
            qb.load(tmp_path / name)
