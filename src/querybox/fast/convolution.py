"""Convolutions and linear layers fused with the operations that follow them: a shortcut, an activation.

On x86 CPUs a single oneDNN operator computes all of this while the result is still in the cache, and oneDNN's linear
layers are faster. On NVIDIA GPUs cuDNN has such an operator for a ReLU. PyTorch does not document these operators;
if they are missing, public functions are used. Measurements on CPUs are in docs/decisions/0009-fast-torch-engine.md,
those on a GPU in docs/benchmarks.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.padding import pad_same, pad_same_arg
from timm.models.hgnet import LearnableAffineBlock
from torch import Tensor, nn

ONEDNN = torch.ops.mkldnn


class Activation(NamedTuple):
    """An activation that oneDNN can fuse into a convolution or linear layer."""

    name: str
    """Name in oneDNN."""
    arguments: list[float]
    function: Callable[[Tensor], Tensor]
    """The equivalent PyTorch function; may modify its argument in place."""
    algorithm: str = ""
    """Variant of the function in oneDNN."""


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: Activation("none", [], nn.Identity()),
    nn.ReLU: Activation("relu", [], partial(F.relu, inplace=True)),
    nn.ReLU6: Activation("hardtanh", [0.0, 6.0], partial(F.relu6, inplace=True)),
    nn.SiLU: Activation("swish", [], partial(F.silu, inplace=True)),
    nn.Hardswish: Activation("hardswish", [], partial(F.hardswish, inplace=True)),
    nn.GELU: Activation("gelu", [], F.gelu, "none"),  # not approximated by a tangent
}


class FusedConv2d(nn.Conv2d):
    """A convolution fused with an addition and an activation."""

    onednn = False
    """Whether to use oneDNN's operator; see `use_fused_operators`."""
    cudnn = False
    """Whether to use cuDNN's operator, which includes a ReLU."""
    overwrite_shortcut = False
    """Whether the result may overwrite the shortcut, because nothing else uses it."""
    activation: type[nn.Module] = nn.Identity
    """Activation after the addition, one of `ACTIVATIONS`."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Return whether `conv` pads with zeros, by a number of pixels."""
        return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(
        self, x: Float[Tensor, "B _ _ _"], shortcut: Float[Tensor, "B D h w"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Return the activation of the convolution plus the shortcut."""
        if self.onednn:
            return self.by_onednn(x, shortcut)
        if self.cudnn:
            return self.by_cudnn(x, shortcut)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return ACTIVATIONS[self.activation].function(x if shortcut is None else x + shortcut)

    def by_onednn(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Use one operator, except for activations that it does not support after an addition."""
        weight, padding = self.kernel(x)
        conv = (weight, self.bias, padding, self.stride, self.dilation, self.groups)
        name, arguments, function, algorithm = ACTIVATIONS[self.activation]
        if shortcut is None:
            return ONEDNN._convolution_pointwise(x, *conv, name, arguments, algorithm)
        relu = "relu" if name == "relu" else None  # the only activation supported after an addition
        if self.overwrite_shortcut:
            x = ONEDNN._convolution_pointwise_.binary(shortcut, x, *conv, "add", 1.0, relu, [], "")
        else:
            x = ONEDNN._convolution_pointwise.binary(x, shortcut, *conv, "add", 1.0, relu, [], "")
        return x if relu else function(x)

    def kernel(self, x: Tensor) -> tuple[Tensor, Sequence[int] | str]:  # noqa: ARG002 - of subclasses
        """Return the weight and the padding with which oneDNN convolves `x`."""
        return self.weight, self.padding

    def by_cudnn(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Use one operator; the activation is a ReLU."""
        stride, padding, dilation = self.stride, self.padding, self.dilation
        assert not isinstance(padding, str)  # see `fits`
        if shortcut is None:
            return torch.cudnn_convolution_relu(
                x, self.weight, self.bias, stride, padding, dilation, self.groups
            )
        return torch.cudnn_convolution_add_relu(
            x, self.weight, shortcut, 1.0, self.bias, stride, padding, dilation, self.groups
        )


class FusedConv2dSame(FusedConv2d):
    """A depthwise convolution with TensorFlow's "same" padding; see `extended`."""

    @staticmethod
    def fits(conv: nn.Conv2d) -> bool:
        """Return whether extending the kernel takes less time than padding the map."""
        return is_depthwise(conv)

    def forward(
        self, x: Float[Tensor, "B D _ _"], shortcut: Float[Tensor, "B D h w"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Return the convolution; see `FusedConv2d.forward`."""
        if not self.onednn:
            x = pad_same(x, list(self.kernel_size), list(self.stride))
        return super().forward(x, shortcut)

    def kernel(self, x: Tensor) -> tuple[Tensor, Sequence[int] | str]:
        """Return the weight and the padding with which oneDNN convolves `x`."""
        return extended(self, self.weight, x)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is depthwise, and not dilated."""
    return conv.groups == conv.in_channels and conv.dilation == (1, 1)


def extended(
    conv: nn.Conv2d, weight: Float[Tensor, "D 1 _ _"], x: Float[Tensor, "B D _ _"]
) -> tuple[Float[Tensor, "D 1 _ _"], list[int]]:
    """Return the weight and the padding, the same on both sides, of a convolution with TensorFlow's "same" padding.

    This pads one pixel more at the right and bottom if their number is odd. Padding the map would copy it, so the
    kernel begins with a row or column of zeros instead.
    """
    left, right, top, bottom = pad_same_arg(list(x.shape[2:]), list(conv.kernel_size), list(conv.stride))
    return F.pad(weight, [right - left, 0, bottom - top, 0]), [bottom, right]


class FusedLinear(nn.Linear):
    """A linear layer, optionally fused with an activation."""

    onednn = False
    """Whether to use oneDNN's operator; see `use_fused_operators`."""
    activation: type[nn.Module] = nn.Identity
    """`torch.nn.ReLU`, `torch.nn.GELU` or `torch.nn.Identity`."""

    def forward(self, x: Float[Tensor, "*shape _"]) -> Float[Tensor, "*shape _"]:
        """Return the activation of the projection."""
        name, arguments, function, algorithm = ACTIVATIONS[self.activation]
        if self.onednn:
            return ONEDNN._linear_pointwise(x, self.weight, self.bias, name, arguments, algorithm)
        return function(F.linear(x, self.weight, self.bias))

    def on_map(
        self, x: Float[Tensor, "B _ h w"], shortcut: Float[Tensor, "B D h w"]
    ) -> Float[Tensor, "B D h w"]:
        """Return the projection of a map plus a shortcut, which may be overwritten.

        With few input features oneDNN's convolution takes half the time of its linear layer.
        """
        x, shortcut = x.to(self.weight.dtype), shortcut.to(self.weight.dtype)
        if not self.onednn:
            return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2) + shortcut
        conv = (self.weight[:, :, None, None], self.bias, [0, 0], [1, 1], [1, 1], 1)
        return ONEDNN._convolution_pointwise_.binary(shortcut, x, *conv, "add", 1.0, None, [], "")


class FusedAffine(LearnableAffineBlock):
    """The affine block after an activation of HGNetv2, computed in one pass instead of two."""

    factor: float | None = None
    """The scale, where reading it does not wait for a device; see `use_fused_operators`."""

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Return the scaled and shifted map."""
        if self.factor is None:
            return self.scale * x + self.bias
        return torch.add(self.bias, x, alpha=self.factor)


def use_fused_operators(model: nn.Module) -> None:
    """Enable the operators of the fused layers of `model` that are available for their device and dtype."""
    for layer in model.modules():
        if isinstance(layer, FusedAffine) and layer.scale.device.type == "cpu":
            layer.factor = layer.scale.item()
        if isinstance(layer, FusedConv2d | FusedLinear):
            layer.onednn = has_onednn(layer.weight.device, layer.weight.dtype)
        if isinstance(layer, FusedConv2d):
            layer.cudnn = layer.activation is nn.ReLU and layer.groups == 1 and has_cudnn(layer.weight.device)


def has_cudnn(device: torch.device) -> bool:
    """Return whether cuDNN's operators are available on a device."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None  # AMD GPUs are also called "cuda"
        and torch.backends.cudnn.is_available()
        and all(hasattr(torch, name) for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"))
    )


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's operators are available for a device and dtype."""
    available = (
        device.type == "cpu"
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(ONEDNN, name) for name in ("_convolution_pointwise", "_linear_pointwise"))
    )
    if dtype == torch.bfloat16:
        return available and ONEDNN._is_mkldnn_bf16_supported()
    return available and dtype == torch.float32
