"""Depthwise convolutions with large kernels whose gradients take less time than PyTorch's on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from querybox.fast.kernels import convolution_gradient, onednn_is_faster

PART = 3
"""Height and width of the parts in which the gradient of a depthwise weight is computed."""


def is_large_depthwise(conv: nn.Conv2d) -> bool:
    """Return whether `depthwise` computes this convolution, and its gradient faster than PyTorch."""
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and min(conv.kernel_size) > PART
        and conv.dilation == (1, 1)
        and not isinstance(conv.padding, str)
        and onednn_is_faster()
    )


def depthwise(
    conv: nn.Conv2d,
    x: Float[Tensor, "B D h w"],
    weight: Float[Tensor, "D 1 _ _"],
    bias: Float[Tensor, " D"] | None,
) -> Float[Tensor, "B D H W"]:
    """Apply `conv`, which `is_large_depthwise`, with this weight and bias; see `Depthwise`."""
    assert not isinstance(conv.padding, str)
    rows, columns = conv.padding
    y: Tensor = Depthwise.apply(F.pad(x, (columns, columns, rows, rows)), weight, bias, conv.stride)
    return y


class Depthwise(Function):
    """A depthwise convolution without padding, and its gradients.

    oneDNN computes the gradient of a weight of 3x3 several times as fast as that of a larger one, which is therefore
    computed in parts of `PART`, of which the last ones overlap.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> Tensor:
        """Return the convolved maps."""
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of maps, weight and bias."""
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            gradient_of_maps(gradient, x, weight, stride=ctx.stride) if of_x else None,
            gradient_of_depthwise_weight(gradient, x, weight, ctx.stride) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def gradient_of_maps(
    gradient: Float[Tensor, "B D H W"],
    x: Float[Tensor, "B D h w"],
    weight: Float[Tensor, "D 1 _ _"],
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "B D h w"]:
    """Return the gradient of the input of a depthwise convolution."""
    if stride == (1, 1):
        # The same as oneDNN's gradient, which takes about twice as long.
        rows, columns = (size - 1 - pad for size, pad in zip(weight.shape[2:], padding, strict=True))
        return F.conv2d(gradient, weight.flip(2, 3), padding=(rows, columns), groups=len(weight))
    return convolution_gradient(
        "input", gradient, x, weight, stride=stride, padding=padding, groups=len(weight)
    )


def gradient_of_depthwise_weight(
    gradient: Float[Tensor, "B D H W"],
    x: Float[Tensor, "B D h w"],
    weight: Float[Tensor, "D 1 _ _"],
    stride: tuple[int, ...],
) -> Float[Tensor, "D 1 _ _"]:
    """Return the gradient of the weight of a depthwise convolution without padding; see `Depthwise`."""
    result, (height, width) = torch.empty_like(weight), gradient.shape[2:]
    firsts = [[*range(0, size - PART, PART), size - PART] for size in weight.shape[2:]]
    for row, column in itertools.product(*firsts):
        rows = slice(row, row + stride[0] * (height - 1) + PART)
        columns = slice(column, column + stride[1] * (width - 1) + PART)
        taps = (..., slice(row, row + PART), slice(column, column + PART))
        part = x[:, :, rows, columns]
        result[taps] = convolution_gradient(
            "weight", gradient, part, weight[taps], stride=stride, groups=len(weight)
        )
    return result
