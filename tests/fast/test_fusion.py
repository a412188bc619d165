"""The fused backbone computes what the backbone computes, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torch.testing import assert_close

from querybox.fast.convolution import FusedAffine, FusedConv2d, FusedConv2dSame, extended, use_fused_operators
from querybox.fast.fusion import fuse
from querybox.fast.replacement import copy_modules, replace_leaves
from querybox.modules.backbone import Backbone
from querybox.modules.hybrid import CSPRepLayer, RepConv

IMAGES = torch.randn(2, 3, 43, 64, generator=torch.Generator().manual_seed(1))
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
        ("resnet10t", (2, 32)),  # three convolutions in the stem, pooling in shortcuts
        ("resnetblur18", (32,)),  # blurred before strides
        ("legacy_seresnet18", (32,)),
        ("seresnet50", (32,)),  # squeeze-and-excitation after the last convolution of a block
        ("resnext50_32x4d", (32,)),
        ("regnetx_002", (8, 32)),
        ("regnety_002", (32,)),
        ("efficientnet_es", (32,)),  # fused inverted bottlenecks
        ("mixnet_s", (32,)),  # kernels of several sizes
        ("mobilenetv4_conv_small_050", (32,)),
        ("lcnet_035", (32,)),
        ("repvgg_a0", (32,)),  # branches beside one another
        ("vgg11_bn", (2, 16)),  # one long sequence, whose inner maps are returned
        ("hgnetv2_b0", (32,)),
        ("ese_vovnet19b_dw", (32,)),
        ("skresnet18", (32,)),
        ("test_nfnet", (32,)),  # standardised weights
        ("test_convnext2", (32,)),
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


def test_maps_that_a_body_of_ones_own_collects_are_not_overwritten(trained: Change) -> None:
    """It calls the blocks of a stage one by one, and returns what each of them makes."""

    class Collecting(nn.Module):
        def __init__(self, body: Any) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.body.maxpool(self.body.act1(self.body.bn1(self.body.conv1(x))))
            maps = []
            for stage in (self.body.layer1, self.body.layer2):
                for block in stage:
                    x = block(x)
                    maps.append(x)
            return maps

    backbone = Backbone("resnet18", strides=(8,))
    trained(backbone)
    backbone.body = Collecting(backbone.body)
    compare(backbone)


def test_stride_2_maps_are_not_overwritten(trained: Change) -> None:
    """The stem's map is returned, and is the shortcut of no block."""
    backbone = Backbone("resnet18", strides=(2, 4))
    trained(backbone)
    compare(backbone)


def test_branches_are_merged_into_one_convolution(trained: Change) -> None:
    model = nn.Sequential(RepConv(8), CSPRepLayer(8, 8, hidden=4, blocks=3)).eval()
    trained(model)
    fused = fused_copy(model)
    convolutions = [part for part in fused.modules() if isinstance(part, FusedConv2d)]
    assert len(convolutions) == 1 + 2 + 3 + 1  # two and one 1x1 convolutions around three blocks
    assert all(each.activation is nn.SiLU for each in convolutions)
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm2d | nn.SiLU)]
    images = torch.randn(2, 8, 9, 12)
    with torch.inference_mode():
        expected = model(images)
        assert expected.std() > 0.01
        for _ in range(2):
            assert_close(fused(images), expected, rtol=1e-4, atol=1e-5)
            use_fused_operators(fused)


def test_branches_with_hooks_are_not_merged(trained: Change) -> None:
    block = RepConv(8).eval()
    trained(block)
    model = nn.Sequential(block)
    calls: list[int] = []
    block.conv2.conv.register_forward_hook(lambda *_: calls.append(1))
    fused = fused_copy(model)
    images = torch.randn(1, 8, 9, 12)
    with torch.inference_mode():
        assert_close(fused(images), model(images), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def test_affine_blocks_take_one_pass(trained: Change) -> None:
    backbone = Backbone("hgnetv2_b0", strides=(8, 16), frozen_stride=0)
    trained(backbone)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(("lab.scale", "lab.bias")):
                parameter.uniform_(-1.5, 1.5)
    compare(backbone)
    fused = fused_copy(backbone.eval())
    use_fused_operators(fused)
    blocks = [part for part in fused.modules() if isinstance(part, FusedAffine)]
    assert len(blocks) > 10
    assert all(block.factor == block.scale.item() for block in blocks)


@pytest.mark.parametrize("size", [(16, 19), (17, 16), (1, 2), (2, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (5, 3)])
def test_kernels_are_extended_instead_of_maps(kernel: int, stride: int, size: tuple[int, int]) -> None:
    conv = Conv2dSame(8, 8, kernel, stride, groups=8)
    images = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = conv(images)
        fused = copy_modules(nn.Sequential(conv))
        replace_leaves(fused, {Conv2dSame: FusedConv2dSame})
        assert type(fused[0]) is FusedConv2dSame
        for _ in range(2):
            assert_close(fused(images), expected, rtol=1e-5, atol=1e-5)
            use_fused_operators(fused)
        weight, padding = extended(conv, conv.weight, images)
        again = nn.functional.conv2d(images, weight, conv.bias, conv.stride, padding, groups=8)
    assert_close(again, expected, rtol=1e-5, atol=1e-5)


def test_kernels_of_several_channels_and_dilated_ones_are_not_extended() -> None:
    model = nn.Sequential(Conv2dSame(8, 8, 3, 2), Conv2dSame(8, 8, 3, 2, dilation=2, groups=8))
    replace_leaves(model, {Conv2dSame: FusedConv2dSame})
    assert {type(part) for part in model} == {Conv2dSame}
