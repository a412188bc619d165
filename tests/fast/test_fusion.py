"""The fused backbone computes what the backbone computes, whatever the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from querybox.fast.convolution import FusedConv2d, use_fused_operators
from querybox.fast.fusion import fuse
from querybox.fast.replacement import copy_modules
from querybox.modules.backbone import Backbone

IMAGES = torch.randn(2, 3, 75, 96, generator=torch.Generator().manual_seed(1))
Change = Callable[[nn.Module], None]


def fused_copy(model: nn.Module) -> nn.Module:
    fused = copy_modules(model.eval())
    fuse(fused)
    return fused.requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)


def compare(backbone: Backbone) -> nn.Module:
    """Compare the fused copy with the backbone, with public functions and with oneDNN; return it."""
    fused = fused_copy(backbone)
    with torch.inference_mode():
        expected = backbone(IMAGES)
        for _ in range(2):
            answers = fused(IMAGES.contiguous(memory_format=torch.channels_last))
            assert len(answers) == len(expected)
            for ours, theirs in zip(answers, expected, strict=True):
                assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
            use_fused_operators(fused)
    return fused


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", (8, 16, 32)),  # all maps: none may be written over
        ("test_efficientnet", (4, 32)),
        ("mobilenetv3_small_050", (16, 32)),  # squeeze-and-excitation, hard swish
        ("efficientnet_b0", (32,)),  # SiLU
        ("test_byobnet", (32,)),
        ("test_convnext", (32,)),  # no batch norm
        ("resnetv2_18", (32,)),  # activations before convolutions
        ("densenet121", (32,)),  # batch norms that follow no convolution
    ],
)
def test_maps_are_the_same(name: str, strides: tuple[int, ...], trained: Change) -> None:
    backbone = Backbone(name, strides=strides, frozen_stride=0)
    trained(backbone)
    compare(backbone)


def test_a_residual_network_is_convolutions_and_a_pool(trained: Change) -> None:
    backbone = Backbone("resnet50", strides=(16,), dilation=True)
    trained(backbone)
    fused = compare(backbone)
    steps = [part for part in fused.modules() if isinstance(part, FusedConv2d)]
    assert len(steps) == 53
    assert sum(step.overwrite_shortcut for step in steps) == 16
    left = {type(part) for part in fused.modules() if not list(part.children())}
    assert left <= {FusedConv2d, nn.MaxPool2d, nn.Identity, nn.Sequential}  # these are empty


def test_batch_norms_are_folded_where_padding_depends_on_the_size(trained: Change) -> None:
    backbone = Backbone("tf_efficientnet_lite0")  # and ReLU6
    trained(backbone)
    fused = compare(backbone)
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm2d)]
