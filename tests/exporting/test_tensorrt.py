"""Whether ONNX files are of what TensorRT's parser documents. TensorRT itself is not run."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto
from onnx.numpy_helper import to_array

from querybox.checkpoints.find import Format
from querybox.exporting import Exported
from querybox.exporting.card import ExportedPrecision

DOCUMENTED = (
    "Abs Add And ArgMax AveragePool Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum "
    "Div Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater "
    "GreaterOrEqual GridSample Identity InstanceNormalization IsInf IsNaN LayerNormalization Less LessOrEqual Log "
    "MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum Relu Reshape Resize Round ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softmax "
    "Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Where Xor"
)
"""Those of https://github.com/onnx/onnx-tensorrt/blob/10.1-GA/docs/operators.md that a detector may need."""
TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
}
"""Types of values inside a graph. UINT8 is possible for inputs and outputs only."""
OPSETS = range(9, 21)
MOST_SELECTED = 3840
"""TopK selects fewer."""


def problems(model: onnx.ModelProto) -> list[str]:
    """Return where a model, with inferred types and shapes, is not of what the parser documents."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    constants = {each.name for each in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    values = {each.name: to_array(each) for each in graph.initializer}
    inputs = {each.name for each in graph.input if each.type.tensor_type.elem_type == TensorProto.UINT8}
    found = [f"type of {name}: {kind}" for name, kind in types.items() if kind not in TYPES]
    for node in graph.node:
        if node.domain or node.op_type not in DOCUMENTED.split():
            found.append(f"operator {node.op_type}")
        if inputs & {*node.input} and node.op_type != "Cast":
            found.append(f"{node.op_type} of a uint8 input")
        if node.op_type == "Equal" and types[node.input[0]] == TensorProto.BOOL:
            found.append("Equal of booleans")
        if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in constants:
            found.append(f"axes of {node.name}")
        if node.op_type == "Slice" and len(node.input) > 3 and node.input[3] not in constants:
            found.append(f"axes of {node.name}")
        if node.op_type == "TopK" and node.input[1] in values and values[node.input[1]] >= MOST_SELECTED:
            found.append(f"k of {node.name}")
        if node.op_type == "ScatterND" and any(each.name == "reduction" for each in node.attribute):
            found.append(f"reduction of {node.name}")
    return sorted(set(found))


def test_a_file_for_any_size_is_of_what_tensorrt_documents(exported: Callable[[Format], Exported]) -> None:
    model = onnx.load(exported("onnx").files[0])
    assert {each.domain: each.version for each in model.opset_import}[""] in OPSETS
    assert problems(model) == []


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_file_of_a_fixed_size_has_static_shapes(
    fixed: Callable[[ExportedPrecision], Exported], precision: ExportedPrecision
) -> None:
    model = onnx.load(fixed(precision).files[0])
    assert problems(model) == []
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for each in (*inferred.input, *inferred.output):
        assert all(axis.dim_value > 0 for axis in each.type.tensor_type.shape.dim), each.name


def test_what_is_not_documented_is_found() -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 18]>
        g (uint8[4] pixels, int64[1] axes) => (double[4] a, float[k] b, uint8[4] c) {
            a = Cast <to = 11> (pixels)
            x = Cast <to = 1> (pixels)
            n = NonZero (x)
            d = Cast <to = 11> (x)
            y = Cast <to = 1> (d)
            b = ReduceSum (y, axes)
            c = BitwiseNot (pixels)
            q = IsNaN (x)
            p = Not (q)
            e = Equal (p, q)
        }
        """
    )
    found = problems(model)
    assert "operator BitwiseNot" in found
    assert "operator NonZero" in found
    assert "Equal of booleans" in found
    assert "BitwiseNot of a uint8 input" in found
    assert any(each.startswith("type of d") for each in found)
    assert any(each.startswith("axes of") for each in found)
