"""Random initial weights of large models in a fraction of the time: slices of random numbers that are drawn once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

LARGE = 1 << 18
"""Number of weights from which on a tensor is filled with slices; tensors of timm's test models have fewer."""
DRAWN = 1 << 22
"""How many numbers are drawn, more than the weights of all tensors but a few."""


def install() -> None:
    """Have `kaiming_uniform_`, `kaiming_normal_` and `xavier_uniform_`, which layers and timm call, fill with slices.

    Only those that are large: they have the distribution and depend on the seed as before, but share numbers.
    """
    for name, draw in (("kaiming_uniform_", torch.rand), ("kaiming_normal_", torch.randn)):
        mock.patch.object(nn.init, name, partial(fill, getattr(nn.init, name), draw)).start()
    mock.patch.object(nn.init, "xavier_uniform_", partial(fill_xavier, nn.init.xavier_uniform_)).start()


def fill(
    original: Callable[..., Tensor],
    draw: Callable[..., Tensor],
    tensor: Tensor,
    a: float = 0,
    mode: Any = "fan_in",
    nonlinearity: Any = "leaky_relu",
    **keywords: Any,
) -> Tensor:
    """Fill `tensor` as `original` does, with slices of the numbers of `draw` if it is large."""
    if tensor.numel() < LARGE or tensor.device.type != "cpu" or not tensor.is_contiguous() or keywords:
        return original(tensor, a, mode, nonlinearity, **keywords)
    std = nn.init.calculate_gain(nonlinearity, a) / math.sqrt(nn.init._calculate_correct_fan(tensor, mode))
    return fill_slices(draw, tensor, std)


def fill_xavier(
    original: Callable[..., Tensor], tensor: Tensor, gain: float = 1.0, **keywords: Any
) -> Tensor:
    """Fill `tensor` as `xavier_uniform_` does, with slices of random numbers if it is large."""
    if tensor.numel() < LARGE or tensor.device.type != "cpu" or not tensor.is_contiguous() or keywords:
        return original(tensor, gain, **keywords)
    fans = nn.init._calculate_fan_in_and_fan_out(tensor)
    return fill_slices(torch.rand, tensor, gain * math.sqrt(2 / sum(fans)))


def fill_slices(draw: Callable[..., Tensor], tensor: Tensor, std: float) -> Tensor:
    """Fill `tensor` with slices of the numbers of `draw`, of this standard deviation."""
    with torch.no_grad():
        for part in tensor.view(-1).split(DRAWN // 2):
            start = int(torch.randint(DRAWN // 2, ()))
            torch.mul(standard(draw)[start : start + len(part)], std, out=part)
    return tensor


@cache
def standard(draw: Callable[..., Tensor]) -> Tensor:
    """Return numbers of mean 0 and standard deviation 1."""
    numbers = draw(DRAWN, generator=torch.Generator().manual_seed(0))
    return numbers if draw is torch.randn else (2 * numbers - 1) * math.sqrt(3)
