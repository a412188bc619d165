"""Writing OpenVINO files, and running them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from querybox.checkpoints.digest import digest_of
from querybox.errors import CheckpointError, requires_extra
from querybox.exporting.card import EXPORT_AGAIN, INPUTS, KEY, Card
from querybox.exporting.engine import ExportedModel, Outputs, Runner, one_at_a_time
from querybox.exporting.expansion import expand
from querybox.exporting.graph import sizes_as_traced
from querybox.exporting.lowering import lower
from querybox.exporting.signature import Port, check_signature
from querybox.exporting.telemetry import without_telemetry
from querybox.files import require_regular

if TYPE_CHECKING:
    import openvino

DIGEST = f"{KEY}_weights"
"""Key of the digest of the ``.bin`` file in the metadata of the ``.xml`` file; earlier files do not have it."""
NO_DIGEST = "0" * 64
"""Stands for the digest until the ``.bin`` file is written."""
TYPES = {"u8": "uint8", "i64": "int64", "f32": "float32"}
"""Names of types, by those of OpenVINO."""


def convert(program: ExportedProgram, card: Card) -> openvino.Model:
    """Convert a traced detector to an OpenVINO model.

    Args:
        program: The detector.
        card: Its card.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with requires_extra("openvino", "writing an OpenVINO file"), without_telemetry():
        from openvino.frontend import OpConversionFailure
    with sizes_as_traced():
        try:
            model = to_openvino(lower(program, expand))
        except OpConversionFailure:  # of an operation that has to be decomposed
            model = to_openvino(program)
    for port, name in zip([*model.inputs, *model.outputs], [*INPUTS, *card.outputs], strict=True):
        port.get_tensor().set_names({name})
    # The converter makes every axis dynamic; those that are fixed give faster kernels.
    batch, height, width = (-1, -1, -1) if card.size is None else (1, *card.size)
    model.reshape({"pixels": [batch, 3, height, width], "sizes": [batch, 2]})
    return model


def to_openvino(program: ExportedProgram) -> openvino.Model:
    """Convert a program as it is traced."""
    import openvino
    from openvino import opset14
    from openvino.frontend.pytorch import ConversionExtension

    def minimum(node: Any) -> Any:
        """Convert `torch.sym_min`, which the converter does not support."""
        return opset14.minimum(node.get_input(0), node.get_input(1)).outputs()

    def product(node: Any) -> Any:
        """Convert `torch.matmul`, which the converter decomposes; the shapes that it takes are the same."""
        return opset14.matmul(node.get_input(0), node.get_input(1), False, False).outputs()

    converted = {torch.sym_min: minimum, torch.ops.aten.matmul.default: product}
    extensions = [ConversionExtension(str(target), rule) for target, rule in converted.items()]
    with keeping_root_logger():
        return openvino.convert_model(program, extension=extensions)


@contextmanager
def keeping_root_logger() -> Iterator[None]:
    """Undo what OpenVINO changes of the root logger, which shows errors alone once a conversion has failed."""
    root = logging.getLogger()
    level, filters, handlers = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:], root.handlers[:] = filters, handlers


def write(model: openvino.Model, path: Path, card: Card) -> None:
    """Write the model, with its weights in a ``.bin`` file beside it, as float16 if its precision is bf16.

    The model states the digest of its weights. Those of another export, which may have the same shapes, would give
    other detections.
    """
    import openvino

    model.set_rt_info(card.to_json(), KEY)
    model.set_rt_info(NO_DIGEST, DIGEST)
    openvino.save_model(model, path, compress_to_fp16=card.precision == "bf16")
    digest = digest_of(path.with_suffix(".bin"))
    path.write_bytes(path.read_bytes().replace(NO_DIGEST.encode(), digest.encode()))


def load(path: Path) -> ExportedModel:
    """Load a file written by `write`.

    Raises:
        CheckpointError: The file is corrupt or not exported by querybox, or its ``.bin`` is missing or that of another
            file.
        MissingExtraError: OpenVINO is not installed.
    """
    with requires_extra("openvino", "running an OpenVINO file"), without_telemetry():
        import openvino
    weights = path.with_suffix(".bin")
    require_regular(weights, CheckpointError)
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # a file that is overwritten would end this process (SIGBUS)
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise CheckpointError(
            f"{path}: corrupt, not an OpenVINO model, or its {weights.name} is missing ({reason}); {EXPORT_AGAIN}"
        ) from error
    card = Card.from_json(model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None, path)
    check_signature(path, card, ports(model.inputs), ports(model.outputs))
    if model.has_rt_info(DIGEST) and model.get_rt_info(DIGEST).value != digest_of(weights):
        raise CheckpointError(
            f"{path}: its {weights.name} is damaged, or that of another export; copy both files again, which belong "
            "together, or export the model again"
        )
    return ExportedModel(card, runner(model, card))


def ports(nodes: Iterable[Any]) -> dict[str, Port]:
    """Return the inputs or the outputs of a model by name."""
    return {
        ", ".join(node.names): Port(
            TYPES.get(node.element_type.get_type_name(), node.element_type.get_type_name()),
            ()
            if node.partial_shape.rank.is_dynamic
            else tuple(None if size.is_dynamic else size.get_length() for size in node.partial_shape),
        )
        for node in nodes
    }


def in_float32(model: openvino.Model, card: Card) -> ExportedModel:
    """Return a model that is computed in float32, whatever its card says."""
    card = dataclasses.replace(card, precision="float32")
    return ExportedModel(card, runner(model, card))


def runner(model: openvino.Model, card: Card) -> Runner:
    """Compile the model once for all sizes: compiling for each size would gain 2-7 % and take a second each."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if card.precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # pinned threads of several processes would share cores while others are idle
    }
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        values = request.infer(
            {"pixels": pixels.contiguous().numpy(), "sizes": sizes.numpy()}, share_inputs=True
        )
        return {name: torch.from_numpy(values[name].copy()) for name in card.outputs}

    return one_at_a_time(run)
