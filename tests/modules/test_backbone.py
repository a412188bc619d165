"""Backbones: which maps they yield, what of them is trained, and where their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from querybox.checkpoints.backbone import load_backbone
from querybox.errors import CheckpointError, ConfigError
from querybox.modules.backbone import Backbone

IMAGES = torch.rand(1, 3, 64, 96)


@pytest.mark.parametrize(
    ("name", "stride", "dilation", "shape"),
    [
        ("resnet18", 32, False, (1, 512, 2, 3)),
        ("resnet18", 16, False, (1, 256, 4, 6)),
        ("resnet50", 16, True, (1, 2048, 4, 6)),
        ("tf_efficientnet_lite0", 8, False, (1, 40, 8, 12)),
        ("convnext_atto", 32, False, (1, 320, 2, 3)),
    ],
)
def test_maps(name: str, stride: int, *, dilation: bool, shape: tuple[int, ...]) -> None:
    backbone = Backbone(name, strides=(stride,), dilation=dilation)
    (feature,) = backbone(IMAGES)
    assert feature.shape == shape
    assert backbone.channels == [shape[1]]


def test_strides_may_repeat() -> None:
    backbone = Backbone("test_resnet", strides=(4, 4, 8))
    first, second, last = backbone(IMAGES)
    assert torch.equal(first, second)
    assert [first.shape[1], second.shape[1], last.shape[1]] == backbone.channels
    assert last.shape[-2:] == (8, 12)


def test_the_map_before_a_dilated_stage() -> None:
    backbone = Backbone("resnet18", strides=(4, 16, 16), dilation=True)
    assert [tuple(each.shape[1:]) for each in backbone(IMAGES)] == [(64, 16, 24), (256, 4, 6), (512, 4, 6)]
    assert backbone.channels == [64, 256, 512]


def trained(backbone: Backbone) -> list[str]:
    return [name for name, p in backbone.body.named_parameters() if p.requires_grad]


def test_stem_stage_1_and_batch_norms_are_frozen() -> None:
    names = trained(Backbone("resnet18"))
    assert names[0] == "layer2.0.conv1.weight"
    assert all("bn" not in name and "downsample.1" not in name for name in names)
    assert any(name.startswith("layer4") for name in names)


def test_frozen_stride() -> None:
    assert trained(Backbone("resnet18", frozen_stride=0))[0] == "conv1.weight"
    assert trained(Backbone("resnet18", frozen_stride=2))[0] == "layer1.0.conv1.weight"
    assert trained(Backbone("resnet18", frozen_stride=32)) == []
    assert trained(Backbone("resnet18", strides=(2,), frozen_stride=4)) == []
    assert trained(Backbone("convnext_atto", frozen_stride=4))[0].startswith("stages_1")


def test_batch_norm_statistics_do_not_move_in_training() -> None:
    backbone = Backbone("resnet18").train()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    (in_training,) = backbone(IMAGES)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert_close(backbone.eval()(IMAGES)[0], in_training)


def test_a_fresh_backbone_has_frozen_batch_norms() -> None:
    backbone = Backbone("resnet18")
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(IMAGES)
    assert_close(dict(backbone.named_buffers()), before, rtol=0, atol=0)


def test_unknown_model_and_stride() -> None:
    with pytest.raises(ConfigError, match="backbone 'resnet51'"):
        Backbone("resnet51")
    with pytest.raises(
        ConfigError, match=r"no feature map of stride 64; it has \[2, 4, 8, 16, 32\]: choose one"
    ):
        Backbone("resnet18", strides=(64,))
    with pytest.raises(ConfigError, match=r"stride 32; it has \[2, 4, 8, 16\]: set stride=16"):
        Backbone("resnet50", strides=(32,), dilation=True)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "coatnet_nano_rw_224"])
def test_a_model_for_images_of_one_size_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone '{name}' takes images of 224x224 pixels alone"):
        Backbone(name)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("dla34", "cannot take an image of 97x163 pixels, but a detector gets images of any size; choose"),
        ("halonet26t", "cannot take an image of 97x163 pixels"),  # an assertion in timm
        (
            "mambaout_femto",
            "a map of 25x41x48 for 97x163 pixels, not of 48 channels at a stride of 4; choose",
        ),
    ],
)
def test_a_model_whose_maps_are_no_grid_over_any_image_is_refused(name: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"backbone '{name}' .*{fault}"):
        Backbone(name)


@pytest.mark.parametrize(
    ("size", "shape"), [((9, 40), (1, 1)), ((40, 9), (1, 1)), ((1, 100), (1, 3)), ((33, 31), (1, 1))]
)
def test_a_thin_image_is_padded_for_a_model_that_cannot_take_it(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    backbone = Backbone("convnext_atto")
    image = torch.rand(1, 3, *size)
    (feature,) = backbone(image)
    assert feature.shape[-2:] == shape
    padded = torch.zeros(1, 3, max(32, size[0]), max(32, size[1]))
    padded[..., : size[0], : size[1]] = image
    assert_close(feature, backbone(padded)[0])


def test_weights_from_a_file(tmp_path: Path) -> None:
    classifier: Any = timm.create_model("resnet18", pretrained=False).eval()
    save_file(classifier.state_dict(), tmp_path / "resnet18.safetensors")
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "resnet18.pth")
    for file in ("resnet18.safetensors", "resnet18.pth"):
        backbone = Backbone("resnet18").eval()
        load_backbone(backbone, "resnet18", str(tmp_path / file))
        assert_close(backbone(IMAGES)[0], classifier.forward_features(IMAGES))


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    del state["bn1.weight"]
    state["conv1.weight"] = state["conv1.weight"][:, :1].contiguous()
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        CheckpointError, match=r"conv1.weight: expected \[64, 3, 7, 7\], got \[64, 1, 7, 7\]; bn1.weight"
    ):
        load_backbone(Backbone("resnet18"), "resnet18", str(tmp_path / "broken.safetensors"))


def test_imagenet_weights_from_the_registry_package() -> None:
    backbone = Backbone("tf_efficientnet_lite0")
    load_backbone(backbone, "tf_efficientnet_lite0.in1k", "imagenet")
    # Statistics that no random initialisation has.
    assert float(backbone.body.state_dict()["bn1.running_var"].std()) > 0.1
    assert backbone.mean == (127.5, 127.5, 127.5)
