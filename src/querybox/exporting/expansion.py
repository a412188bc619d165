"""Operations of modules in a traced program, replaced by those that OpenVINO has functions for.

PyTorch would decompose them, too, but only by tracing the program again; see `querybox.exporting.lowering`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

from torch import dtype, ops
from torch._ops import OpOverload
from torch.fx import Graph, Node

from querybox.exporting.lowering import insert, substitute

aten = ops.aten
Size = int | Node


class Place(NamedTuple):
    """Where an operation is replaced."""

    graph: Graph
    node: Node

    def put(self, target: Callable[..., Any], *args: Any) -> Node:
        """Insert an operation."""
        return insert(self.graph, self.node, target, *args)

    def first(self, target: Callable[..., Any], *args: Any) -> Node:
        """Insert an operation with several results, and return the first one."""
        return self.put(operator.getitem, self.put(target, *args), 0)

    def sizes(self, x: Node) -> list[Size]:
        """Return the sizes of the axes of a tensor; where they are dynamic, nodes that compute them."""
        return [
            size if isinstance(size, int) else self.put(aten.sym_size.int, x, axis)
            for axis, size in enumerate(x.meta["val"].shape)
        ]


def expand(graph: Graph, node: Node) -> None:
    """Replace a node by equal ones, if a rule applies to it."""
    assert isinstance(node.target, OpOverload)
    rule = RULES.get(node.target)
    if rule is None:
        return
    others = node.target._schema.arguments[len(node.args) :]
    result = rule(
        Place(graph, node), *node.args, *(node.kwargs.get(each.name, each.default_value) for each in others)
    )
    if result is not None:
        substitute(graph, node, result)


def convolution(at: Place, x: Node, weight: Node, bias: Node | None, *window: Any) -> Node:
    """Return a convolution, given strides, padding, dilation and groups."""
    return at.put(aten.convolution.default, x, weight, bias, *window[:-1], False, [0, 0], window[-1])


def layer_norm(
    at: Place, x: Node, shape: Sequence[int], weight: Node | None, bias: Node | None, eps: float, _: bool
) -> Node:
    """Return a layer norm."""
    return at.first(aten.native_layer_norm.default, x, shape, weight, bias, eps)


def group_norm(
    at: Place, x: Node, groups: int, weight: Node | None, bias: Node | None, eps: float, _: bool
) -> Node:
    """Return a group norm."""
    batch, channels, *sides = at.sizes(x)
    area = reduce(lambda one, other: at.put(operator.mul, one, other), sides)
    return at.first(aten.native_group_norm.default, x, weight, bias, batch, channels, area, groups, eps)


def pad(at: Place, x: Node, sides: Sequence[Size], mode: str, value: float | None) -> Node | None:
    """Return a tensor padded with a constant."""
    return at.put(aten.constant_pad_nd.default, x, sides, value or 0.0) if mode == "constant" else None


def softmax(at: Place, x: Node, dim: int, converted: dtype | None) -> Node | None:
    """Return a softmax in the dtype of its input."""
    return None if converted else at.put(aten._softmax.default, x, dim, False)


def all_along(at: Place, x: Node, dim: int, keepdim: bool) -> Node:
    """Return whether all are true."""
    return at.put(
        aten.logical_not.default, at.put(aten.any.dim, at.put(aten.logical_not.default, x), dim, keepdim)
    )


def flatten(at: Place, x: Node, start: int, end: int) -> Node:
    """Return a view with some axes as one."""
    shape = at.sizes(x)
    shape[start % len(shape) : end % len(shape) + 1] = [-1]
    return at.put(aten.view.default, x, shape)


def unflatten(at: Place, x: Node, dim: int, parts: Sequence[Size]) -> Node:
    """Return a view with one axis as several."""
    shape = at.sizes(x)
    dim %= len(shape)
    shape[dim : dim + 1] = parts
    return at.put(aten.view.default, x, shape)


def split(at: Place, x: Node, size: int, dim: int) -> Node | None:
    """Return parts of this size, and what is left as the last one, if their number is known."""
    whole = x.meta["val"].shape[dim]
    if not isinstance(whole, int):
        return None
    parts = [min(size, whole - start) for start in range(0, whole, size)]
    return at.put(aten.split_with_sizes.default, x, parts, dim)


def chunk(at: Place, x: Node, chunks: int, dim: int) -> Node | None:
    """Return this number of parts, if their size is known."""
    return split(at, x, -(-x.meta["val"].shape[dim] // chunks), dim)


def unbind(at: Place, x: Node, dim: int) -> Node:
    """Replace each part by a selection along the axis, and return the input: the node itself then has no users."""
    for part in list(at.node.users):
        substitute(at.graph, part, insert(at.graph, part, aten.select.int, x, dim, part.args[1]))
    return x


RULES: dict[OpOverload, Callable[..., Node | None]] = {
    aten.all.dim: all_along,
    aten.chunk.default: chunk,
    aten.conv2d.default: convolution,
    aten.dropout.default: lambda _, x, *__: x,
    aten.expand_as.default: lambda at, x, other: at.put(aten.expand.default, x, at.sizes(other)),
    aten.flatten.using_ints: flatten,
    aten.grid_sampler.default: lambda at, *args: at.put(aten.grid_sampler_2d.default, *args),
    aten.group_norm.default: group_norm,
    aten.layer_norm.default: layer_norm,
    aten.max_pool2d.default: lambda at, *args: at.first(aten.max_pool2d_with_indices.default, *args),
    aten.pad.default: pad,
    aten.relu6.default: lambda at, x: at.put(aten.hardtanh.default, x, 0.0, 6.0),
    aten.softmax.int: softmax,
    aten.split.Tensor: split,
    aten.unbind.int: unbind,
    aten.unflatten.int: unflatten,
}
