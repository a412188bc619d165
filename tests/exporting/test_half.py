"""ONNX files in float16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from traces import made_once

from querybox.detector import Detector
from querybox.errors import ExportError
from querybox.exporting import Exported, check, export, load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.exporting.half import halve, round_on_cpu
from querybox.exporting.onnx import rounding

GRAPH = """
<ir_version: 10, opset_import: ["": 18]>
g (float[n, 4] x, int64[m] i) => (float[n, 2] logits, float[n, 3] moved, int64[m] next)
<float[4, 3] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2}, float[3] b = {0.01, 0.02, 0.03},
 float[3, 2] v = {1, 2, 3, 4, 5, 6.1}>
{
    y = MatMul(x, w)
    r = Relu(y)
    z = Add(r, b)
    logits = MatMul(r, v)
    s = Sigmoid(z)
    moved = Add(s, z)
    next = Add(i, i)
}
"""


def halved_graph() -> onnx.ModelProto:
    model = onnx_ir.from_proto(onnx.parser.parse_model(GRAPH))
    halve(model)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_only_products_and_what_is_exact_after_them_are_in_float16() -> None:
    proto = halved_graph()
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert types == {
        "w_float16": TensorProto.FLOAT16,
        "v_float16": TensorProto.FLOAT16,
        "b": TensorProto.FLOAT,
    }
    inputs = {node.op_type: list(node.input) for node in proto.graph.node if node.op_type != "Cast"}
    assert inputs["Relu"] == ["y_float16"]
    assert inputs["MatMul"] == ["r_float16", "v_float16"]
    assert inputs["Sigmoid"] == ["z"]
    assert [node.op_type for node in proto.graph.node].count("Cast") == 3  # of x, r and logits
    assert [value.type.tensor_type.elem_type for value in proto.graph.output] == [
        TensorProto.FLOAT,
        TensorProto.FLOAT,
        TensorProto.INT64,
    ]


def test_products_are_rounded_and_sums_are_not() -> None:
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    session = onnxruntime.InferenceSession(halved_graph().SerializeToString())
    logits, moved, following = session.run(None, {"x": x, "i": np.arange(3)})
    w = np.arange(0.1, 1.25, 0.1, dtype=np.float32).reshape(4, 3)
    product = x @ w
    expected = product + np.array([0.01, 0.02, 0.03], np.float32)
    assert 0 < np.abs(moved - (expected + 1 / (1 + np.exp(-expected)))).max() < 4e-3
    v = np.array([[1, 2], [3, 4], [5, 6.1]], np.float32)
    np.testing.assert_allclose(logits, product @ v, rtol=4e-3)
    np.testing.assert_array_equal(following, [0, 2, 4])


def test_on_a_cpu_values_are_rounded_and_overflow_as_on_a_gpu() -> None:
    """ONNX Runtime leaves casts around products out, so that an export of a model that overflows was verified."""
    model = onnx_ir.from_proto(halved_graph())
    round_on_cpu(model)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    x = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    w, v = np.arange(0.1, 1.25, 0.1).reshape(4, 3), np.array([[1, 2], [3, 4], [5, 6.1]])
    product = (x.astype(np.float16).astype(float) @ w.astype(np.float16).astype(float)).astype(np.float16)
    logits, moved, _ = session.run(None, {"x": x, "i": np.arange(3)})
    np.testing.assert_array_equal(logits, (product.astype(float) @ v.astype(np.float16)).astype(np.float16))
    expected = product + np.array([0.01, 0.02, 0.03], np.float32)
    np.testing.assert_allclose(moved, expected + 1 / (1 + np.exp(-expected)), rtol=1e-6)
    large = {"x": np.full((1, 4), 1e4, np.float32), "i": np.arange(3)}
    plain = onnxruntime.InferenceSession(halved_graph().SerializeToString())
    assert np.isinf(session.run(["logits"], large)[0]).all()
    assert np.isfinite(plain.run(["logits"], large)[0]).all()


@pytest.fixture(scope="module")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DETR in float16."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    with made_once():
        done = export(detector, path, to="onnx", precision="fp16")
    assert done.verification.precision == "fp16"
    assert 0 < max(done.verification.scores, done.verification.boxes) < check.TOLERANCES["fp16"]
    return path


def test_the_file_is_a_valid_graph_whose_large_weights_are_in_float16(file: Path, detector: Detector) -> None:
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    sizes = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for tensor in proto.graph.initializer:
        if tensor.data_type in sizes:
            sizes[tensor.data_type] += int(np.prod(tensor.dims))
    assert sizes[TensorProto.FLOAT16] > 5 * sizes[TensorProto.FLOAT]
    assert sum(sizes.values()) < 1.1 * sum(each.numel() for each in detector.parameters())


def test_it_is_an_engine(file: Path) -> None:
    engine = load_exported(file)
    assert engine.card.precision == "fp16"
    outputs = engine.run(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]]))
    assert outputs["logits"].dtype == torch.float32


def test_the_file_is_verified_with_the_roundings_of_gpus(file: Path) -> None:
    plain = load_exported(file)
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    found, unrounded = (each.run(*images)["logits"] for each in (rounding(file, plain.card), plain))
    assert 1e-5 < (found - unrounded).abs().max() < 0.1


def test_detections_are_checked_where_outputs_cannot_be_compared(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_exported(file)
    check.verify_detections(model)
    run = model.run
    monkeypatch.setattr(
        model, "run", lambda *inputs: {**run(*inputs), "scores": torch.full((2, 8), torch.nan)}
    )
    with pytest.raises(ExportError, match="do not match its own logits"):
        check.verify_detections(model)


def test_with_proposals_the_model_is_compared_before_rounding(
    dfine: Detector, fixed: Callable[[ExportedPrecision], Exported]
) -> None:
    assert dfine.proposes_queries
    done = fixed("fp16")
    assert done.verification.precision == "float32"
    assert max(done.verification.scores, done.verification.boxes) < check.TOLERANCES["float32"]
    assert load_exported(done.files[0]).card.precision == "fp16"
