"""Convolutions and linear layers that do in one step what comes after them: add a shortcut, activate.

On x86 CPUs one operator of oneDNN does all of it while the result is still in the cache, and its linear layer is the
faster one. PyTorch has these operators for `torch.compile` and does not document them: they are used where they are
found, and public functions elsewhere. The decision note "The fast engine in torch" has what they bring.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ONEDNN = torch.ops.mkldnn

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
"""Activations that oneDNN can do within a convolution: its name of each and the arguments."""


class FusedConv2d(nn.Module):
    """A convolution, a shortcut added to it, an activation."""

    onednn = False
    """Whether to do it with oneDNN's own operator; see `use_onednn`."""
    spend_shortcut = False
    """Whether nobody else needs the shortcut, so that the result may be written over it."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> None:
        """Take weights and geometry of `conv`, whose padding is zeros and given in numbers."""
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().contiguous(memory_format=torch.channels_last))
        # A copy, for a convolution without a batch norm hands its own over, which may still be trained.
        self.bias = (
            None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        )
        self.stride, self.padding, self.dilation, self.groups = (
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
        )
        self.activation = activation or nn.Identity()

    def forward(
        self, x: Float[Tensor, "B _ _ _"], shortcut: Float[Tensor, "B D h w"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Convolve, add, activate."""
        if self.onednn:
            return self.in_one_step(x, shortcut)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return self.activation(x if shortcut is None else x + shortcut)

    def in_one_step(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Do it with one operator, but for activations that it does not have."""
        conv = (self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        name, arguments = ACTIVATIONS.get(type(self.activation), ("none", []))
        if shortcut is None:
            x = ONEDNN._convolution_pointwise(x, *conv, name, arguments, "")
            return self.activation(x) if name == "none" else x
        relu = "relu" if name == "relu" else None  # the only activation that it has after an addition
        if self.spend_shortcut:
            x = ONEDNN._convolution_pointwise_.binary(shortcut, x, *conv, "add", 1.0, relu, [], "")
        else:
            x = ONEDNN._convolution_pointwise.binary(x, shortcut, *conv, "add", 1.0, relu, [], "")
        return x if relu else self.activation(x)


class FusedLinear(nn.Module):
    """A linear layer and, if asked for, a ReLU."""

    onednn = False
    """Whether to do it with oneDNN's own operator; see `use_onednn`."""

    def __init__(self, linear: nn.Linear, *, relu: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.relu = linear.weight, linear.bias, relu

    def forward(self, x: Float[Tensor, "*shape _"]) -> Float[Tensor, "*shape _"]:
        """Project, activate."""
        if self.onednn:
            return ONEDNN._linear_pointwise(
                x, self.weight, self.bias, "relu" if self.relu else "none", [], ""
            )
        x = F.linear(x, self.weight, self.bias)
        return F.relu(x) if self.relu else x


def use_onednn(part: nn.Module) -> None:
    """Let the fused layers of `part` use oneDNN's operators, where there are any for their device and type."""
    for layer in part.modules():
        if isinstance(layer, FusedConv2d | FusedLinear):
            layer.onednn = has_onednn(layer.weight.device, layer.weight.dtype)


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether oneDNN's operators are there for a device and a type."""
    found = (
        device.type == "cpu"
        and platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(ONEDNN, name) for name in ("_convolution_pointwise", "_linear_pointwise"))
    )
    if dtype == torch.bfloat16:
        return found and ONEDNN._is_mkldnn_bf16_supported()
    return found and dtype == torch.float32
