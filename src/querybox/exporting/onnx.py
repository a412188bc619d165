"""Writing ONNX files, and running them with ONNX Runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.sym_node import SymNode

from querybox.errors import CheckpointError, requires_extra
from querybox.exporting.card import EXPORT_AGAIN, INPUTS, KEY, Card
from querybox.exporting.engine import ExportedModel, Outputs, Runner
from querybox.exporting.graph import sizes_as_traced
from querybox.exporting.half import round_on_cpu
from querybox.exporting.lowering import lower
from querybox.exporting.promotion import promote, skip_promotion
from querybox.exporting.signature import Port, check_signature
from querybox.exporting.telemetry import without_telemetry, without_warnings
from querybox.memory import first_line

if TYPE_CHECKING:
    import onnx_ir
    import onnxruntime

OPSET = 18
TYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}
"""Names of types, by those of ONNX Runtime."""
PROVIDERS = ["CPUExecutionProvider"]


def convert(program: ExportedProgram, card: Card) -> onnx_ir.Model:
    """Convert a traced detector to an ONNX model in float32.

    Raises:
        MissingExtraError: The packages of the extra ``onnx`` are not installed.
    """
    with requires_extra("onnx", "writing an ONNX file"):
        import onnxscript  # noqa: F401 - PyTorch's exporter needs it
    # onnxscript logs the optimisations that it leaves out.
    with sizes_as_traced(), sizes_printed_once(), without_warnings("onnxscript"):
        try:
            model = to_onnx(skip_promotion(lower(program, promote)), card)
        except torch.onnx.OnnxExporterError:  # of an operation that has to be decomposed
            model = to_onnx(program, card)
        simplify(model)
    keep_to_tensorrt(model.graph)
    return model


@contextmanager
def sizes_printed_once() -> Iterator[None]:
    """Keep PyTorch from printing the sizes of all values anew for the names of their axes: few sizes differ."""
    plain, printed = SymNode.__str__, cache(str)
    setattr(SymNode, "__str__", lambda size: printed(size.expr))  # noqa: B010 - a method
    try:
        yield
    finally:
        setattr(SymNode, "__str__", plain)  # noqa: B010


def to_onnx(program: ExportedProgram, card: Card) -> onnx_ir.Model:
    """Convert a program as it is traced."""
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(card.outputs),
        verbose=False,
        optimize=False,
    )
    assert converted is not None
    return converted.model


def simplify(model: onnx_ir.Model) -> None:
    """Inline functions, compute what is constant, and remove what is computed twice or not used.

    PyTorch's own `optimize` also searches for patterns to rewrite, which takes a third of a conversion, and changes
    neither the results nor the speed of detectors in ONNX Runtime.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(model)
    for _ in range(2):  # constants show that more is constant
        optimizer.fold_constants(model, onnx_shape_inference=True)
        optimizer.remove_unused_nodes(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)


def keep_to_tensorrt(graph: onnx_ir.Graph) -> None:
    """Replace the operations of a graph that TensorRT's parser does not document by equal ones.

    They are the shape of the uint8 input, which is also that of the same pixels in float32, and whether two booleans
    are equal, into which the conversion decomposes integer division.
    """
    from onnx_ir import DataType, convenience, node

    pixels = graph.inputs[0]
    cast = next(each for each in pixels.consumers() if each.op_type == "Cast")
    graph.remove(cast)
    graph.insert_before(graph[0], cast)
    for each in list(graph):
        first = each.inputs[0] if each.inputs else None
        if each.op_type == "Shape" and first is pixels:
            each.replace_input_with(0, cast.outputs[0])
        elif each.op_type == "Equal" and first is not None and first.dtype == DataType.BOOL:
            different = node("Xor", each.inputs)
            same = node("Not", different.outputs)
            convenience.replace_nodes_and_values(
                graph, each, [each], [different, same], each.outputs, same.outputs
            )


def write(model: onnx_ir.Model, path: Path, card: Card) -> None:
    """Write a model with its card."""
    import onnx_ir

    model.metadata_props[KEY] = card.to_json()
    onnx_ir.save(model, path)


def load(path: Path) -> ExportedModel:
    """Load a file written by `write`.

    Raises:
        CheckpointError: The file is corrupt or not exported by querybox.
        MissingExtraError: ONNX Runtime is not installed.
    """
    with requires_extra("onnx", "running an ONNX file"), without_telemetry():
        import onnxruntime
    try:
        session = onnxruntime.InferenceSession(path, session_options(), providers=PROVIDERS)
    except Exception as error:
        raise CheckpointError(
            f"{path}: corrupt, or not an ONNX file ({first_line(error)}); {EXPORT_AGAIN}"
        ) from error
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    inputs, outputs = ports(session.get_inputs()), ports(session.get_outputs())
    check_signature(path, card, inputs, outputs)
    return ExportedModel(card, runner(session, card))


def in_float32(model: onnx_ir.Model, card: Card) -> ExportedModel:
    """Return a model that is computed in float32, whatever its card says."""
    return in_memory(model, dataclasses.replace(card, precision="float32"))


def rounding(path: Path, card: Card) -> ExportedModel:
    """Load a file in fp16 with the roundings of GPUs, which ONNX Runtime leaves out on a CPU."""
    import onnx_ir

    model = onnx_ir.load(path)
    round_on_cpu(model)
    return in_memory(model, card)


def in_memory(model: onnx_ir.Model, card: Card) -> ExportedModel:
    """Return a model as an engine without writing it."""
    with without_telemetry():
        import onnxruntime
    import onnx_ir

    content = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, session_options(), providers=PROVIDERS)
    return ExportedModel(card, runner(session, card))


def session_options() -> onnxruntime.SessionOptions:
    """Return the options of all sessions: the number of threads that PyTorch uses, and no warnings."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised
    return options


def runner(session: onnxruntime.InferenceSession, card: Card) -> Runner:
    """Return a function that runs a session."""

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        values = session.run(
            list(card.outputs), {"pixels": pixels.contiguous().numpy(), "sizes": sizes.numpy()}
        )
        return dict(zip(card.outputs, map(torch.from_numpy, values), strict=True))

    return run


def ports(nodes: Iterable[Any]) -> dict[str, Port]:
    """Return the inputs or the outputs of a session by name."""
    return {
        node.name: Port(
            TYPES.get(node.type, node.type),
            tuple(size if isinstance(size, int) else None for size in node.shape or ()),
        )
        for node in nodes
    }
