"""Operations that stand for PyTorch's in a trace, and state the shape of their result.

Where PyTorch has no rule for the shape of a result, it computes the result from other operations, and reasons about the
sizes in each of them. With dynamic sizes that takes a third of the time of a trace, nearly all of it for those here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph
from torch.library import Library, register_fake
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten
LIBRARY = Library("querybox", "DEF")
STOOD_FOR: dict[OpOverload, OpOverload] = {}
"""PyTorch's operation for each stand-in."""


def stand_in(operation: OpOverload, result: Callable[..., Tensor]) -> OpOverload:
    """Return a new operation with the arguments of one of PyTorch's, which can only be traced.

    Args:
        operation: PyTorch's operation.
        result: Returns a tensor with the shape, dtype and strides of the result, given the arguments.
    """
    schema = str(operation._schema).removeprefix("aten::")
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    register_fake(f"querybox::{name}", result, lib=LIBRARY)
    standing: OpOverload = getattr(torch.ops.querybox, name).default
    STOOD_FOR[standing] = operation
    return standing


linear = stand_in(aten.linear.default, lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]))
sampler = stand_in(aten.grid_sampler.default, lambda x, grid, *_: x.new_empty(*x.shape[:2], *grid.shape[1:3]))
norm = stand_in(aten.layer_norm.default, lambda x, *_: x.new_empty(x.shape))
bounded = stand_in(aten.clamp.default, lambda x, *_: torch.empty_like(x))
rectified = stand_in(aten.relu.default, torch.empty_like)
rectified_in_place = stand_in(aten.relu_.default, lambda x: x)
clipped = stand_in(aten.relu6.default, torch.empty_like)
clipped_in_place = stand_in(aten.relu6_.default, lambda x: x)


def grid_sample(
    x: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """See `torch.nn.functional.grid_sample`."""
    if x.ndim != 4 or mode != "bilinear" or padding_mode != "zeros":
        return F.grid_sample(x, grid, mode, padding_mode, align_corners)
    sampled: Tensor = sampler(x, grid, 0, 0, bool(align_corners))
    return sampled


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """See `torch.nn.functional.layer_norm`."""
    normalised: Tensor = norm(x, normalized_shape, weight, bias, eps)
    return normalised


def clamp(x: Tensor, *bounds: Any, **named: Any) -> Tensor:
    """See `torch.Tensor.clamp`."""
    numbers = not any(isinstance(bound, Tensor) for bound in (*bounds, *named.values()))
    clamped: Tensor = (bounded if numbers and x.is_floating_point() else Tensor.clamp)(x, *bounds, **named)
    return clamped


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """See `torch.nn.functional.relu`."""
    activated: Tensor = (rectified_in_place if inplace else rectified)(x)
    return activated


def relu6(x: Tensor, inplace: bool = False) -> Tensor:
    """See `torch.nn.functional.relu6`."""
    activated: Tensor = (clipped_in_place if inplace else clipped)(x)
    return activated


FUNCTIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    F.grid_sample: grid_sample,
    F.layer_norm: layer_norm,
    F.relu: relu,
    F.relu6: relu6,
    Tensor.clamp: clamp,
}


class StandIns(TorchFunctionMode):
    """Calls stand-ins in place of PyTorch's functions, to be entered for a trace only."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the stand-in of `func`, or `func` itself."""
        return FUNCTIONS.get(func, func)(*args, **(kwargs or {}))


def restore(graph: Graph) -> None:
    """Replace all stand-ins in a graph by PyTorch's operations."""
    for node in graph.nodes:
        if isinstance(node.target, OpOverload):
            node.target = STOOD_FOR.get(node.target, node.target)
