"""OpenVINO's files, and running them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from querybox.errors import CheckpointError, MissingExtraError
from querybox.exporting.card import INPUTS, KEY, OUTPUTS, Card, Precision
from querybox.exporting.engine import Answers, ExportedModel, Run

if TYPE_CHECKING:
    import openvino


def convert(program: ExportedProgram) -> openvino.Model:
    """Bring a traced detector to OpenVINO.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
        from openvino import opset14
        from openvino.frontend.pytorch import ConversionExtension
    except ImportError:
        raise missing("writing an OpenVINO file") from None

    def minimum(node: Any) -> Any:
        """Say what the least of two sizes is, which the converter does not know."""
        return opset14.minimum(node.get_input(0), node.get_input(1)).outputs()

    model = openvino.convert_model(program, extension=[ConversionExtension(str(torch.sym_min), minimum)])
    for port, name in zip([*model.inputs, *model.outputs], [*INPUTS, *OUTPUTS], strict=True):
        port.get_tensor().set_names({name})
    # The converter leaves every axis open; known channels make better kernels.
    model.reshape({"pixels": [-1, 3, -1, -1], "sizes": [-1, 2]})
    return model


def write(model: openvino.Model, path: Path, card: Card) -> None:
    """Write the model, and its weights to the ``.bin`` beside it: as float16 where it is made for bf16."""
    import openvino

    model.set_rt_info(card.to_json(), KEY)
    openvino.save_model(model, path, compress_to_fp16=card.precision == "bf16")


def load(path: Path) -> ExportedModel:
    """Open a file that `write` wrote.

    Raises:
        CheckpointError: The file is corrupt or not querybox's, or its ``.bin`` is missing.
        MissingExtraError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise missing("running an OpenVINO file") from None
    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise CheckpointError(
            f"{path}: corrupt, no OpenVINO model, or its {path.with_suffix('.bin').name} is missing ({reason})"
        ) from error
    card = Card.from_json(model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None, path)
    return ExportedModel(card, runner(model, card.precision))


def in_float32(model: openvino.Model, card: Card) -> ExportedModel:
    """Return a model as it is before its rounding."""
    return ExportedModel(dataclasses.replace(card, precision="float32"), runner(model, "float32"))


def runner(model: openvino.Model, precision: Precision) -> Run:
    """Compile the model, for any batch and size: one compiled for each size would gain 2-7 %, and cost a second."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def run(pixels: Tensor, sizes: Tensor) -> Answers:
        values = request.infer(
            {"pixels": pixels.contiguous().numpy(), "sizes": sizes.numpy()}, share_inputs=True
        )
        return {name: torch.from_numpy(values[name].copy()) for name in OUTPUTS}

    return run


def missing(what: str) -> MissingExtraError:
    """Say which extra brings the packages."""
    return MissingExtraError(
        f"{what} needs openvino and nncf, which are not all installed: pip install 'querybox[openvino]'"
    )
