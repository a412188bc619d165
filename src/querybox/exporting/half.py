"""ONNX graphs that compute products in float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that are computed in float16. Nearly all the arithmetic and all large weights are theirs."""
EXACT = frozenset({"Relu", "MaxPool"})
"""Operators that round nothing. After a product they are computed in float16, so that its result stays in it."""


def halve(model: ir.Model) -> None:
    """Have a model compute its products in float16, with float16 weights, in place.

    Everything else stays in float32: sums, normalisation, softmax, the arithmetic of references and boxes, sampling,
    and the ranking of scores. Results of products are cast to float32, so that no other value is rounded; converters
    of whole graphs round each value between two operators that they keep in float32.

    Args:
        model: The model. The types of its inputs and outputs do not change.
    """
    from onnx_ir import DataType
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    halves: dict[ir.Value, ir.Value] = {}
    """The float16 values of float32 ones."""
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type in PRODUCTS or (node.op_type in EXACT and source in halves):
            operands = [value for value in node.inputs if value is not None]
            if all(value.dtype == DataType.FLOAT for value in operands):
                for value in operands:
                    if value not in halves:
                        halves[value] = halved(model.graph, value, node)
                for index, operand in enumerate(node.inputs):
                    if operand is not None:
                        node.replace_input_with(index, halves[operand])
                widened = widen_output(model.graph, node)
                halves[widened] = node.outputs[0]
    RemoveUnusedNodesPass()(model)


def round_on_cpu(model: ir.Model) -> None:
    """Have a model that `halve` changed round the same values on a CPU, in place.

    ONNX Runtime computes products in float32 there, and leaves out the casts around those that no other operation in
    float16 follows, so that their values are neither rounded nor infinite if they are too large. It keeps the casts
    around a product that is in float32 in the graph.

    Args:
        model: The model. Its float16 values stay, but are computed in float32.
    """
    from onnx_ir import DataType, convenience

    for node in list(model.graph):
        (output, *_) = node.outputs
        if node.op_type not in PRODUCTS | EXACT or output.dtype != DataType.FLOAT16:
            continue
        for index, operand in enumerate(node.inputs):
            if operand is not None:
                cast = new_cast(operand, DataType.FLOAT, f"{output.name}_operand{index}")
                model.graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
        name = output.name
        output.name = f"{name}_exact"
        rounded = new_cast(output, DataType.FLOAT16, name)
        convenience.replace_all_uses_with(output, rounded.outputs[0])
        rounded.replace_input_with(0, output)
        output.dtype = DataType.FLOAT
        model.graph.insert_after(node, rounded)


def halved(graph: ir.Graph, value: ir.Value, node: ir.Node) -> ir.Value:
    """Return a float32 value in float16: the rounded weight, or the result of a cast before `node`."""
    from onnx_ir import DataType, tensor, val

    name = f"{value.name}_float16"
    weight = value.const_value if value.is_initializer() else None
    if weight is None:
        cast = new_cast(value, DataType.FLOAT16, name)
        graph.insert_before(node, cast)
        return cast.outputs[0]
    with np.errstate(over="ignore"):  # the comparison with the detector finds infinite weights
        rounded = tensor(weight.numpy().astype(np.float16), name=name)
    constant = val(name, const_value=rounded)
    graph.register_initializer(constant)
    return constant


def widen_output(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Make the output of a node float16, and give its users, who keep its name, a cast to float32."""
    from onnx_ir import DataType, convenience

    (output,) = node.outputs
    name = output.name
    output.name = f"{name}_float16"
    cast = new_cast(output, DataType.FLOAT, name)
    widened = cast.outputs[0]
    convenience.replace_all_uses_with(output, widened, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    output.dtype = DataType.FLOAT16
    graph.insert_after(node, cast)
    return widened


def new_cast(value: ir.Value, dtype: ir.DataType, name: str | None) -> ir.Node:
    """Return a node that casts a value."""
    import onnx_ir as ir

    result = ir.val(name, dtype, value.shape)
    return ir.node("Cast", [value], {"to": dtype}, outputs=[result])
