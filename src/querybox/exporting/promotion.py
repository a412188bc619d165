"""Conversions of types that PyTorch makes by itself, made explicit for ONNX, whose operations take one type.

PyTorch's converter would do the same, but by tracing the program again; see `querybox.exporting.lowering`.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.fx import Graph, Node

from querybox.exporting.lowering import Lowered, insert

aten = torch.ops.aten
COMPARISONS = {aten.eq.Scalar, aten.ne.Scalar, aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar}
"""Comparisons of a tensor with a number, whose boolean result does not tell the type in which they are compared."""
JOINED = {aten.cat.default, aten.stack.default}
CHOICES = {aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor}
"""Operations that choose by a boolean tensor, which stays as it is."""


def promote(graph: Graph, node: Node) -> None:
    """Convert the operands of a node to their common type."""
    assert isinstance(node.target, torch._ops.OpOverload)
    if torch.Tag.pointwise not in node.target.tags and node.target not in JOINED:
        return
    operands = [each for each in node.all_input_nodes if isinstance(each.meta["val"], Tensor)]
    if node.target in CHOICES:
        operands = [each for each in operands if each.meta["val"].dtype != torch.bool]
    dtypes = [each.meta["val"].dtype for each in operands]
    common = node.meta["val"].dtype
    if common == torch.bool:
        common = reduce(torch.promote_types, dtypes, torch.bool)
    if node.target in COMPARISONS and isinstance(node.args[1], int | float):
        common = torch.result_type(torch.empty(1, dtype=common), node.args[1])
    for operand, dtype in zip(operands, dtypes, strict=True):
        if dtype != common:
            converted = insert(graph, node, aten._to_copy.default, operand, dtype=common)
            converted.meta["val"] = operand.meta["val"].to(common)
            node.replace_input_with(operand, converted)


def skip_promotion(program: Lowered) -> Lowered:
    """Have PyTorch's converter find no module in which it would convert types."""
    program.graph_module.modules = lambda: iter(())
    return program
