"""Exporting a detector: traced, written, opened again, and proved equal before the file takes its place."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.export import ExportedProgram

from querybox.data import DetectionData
from querybox.errors import ConfigError
from querybox.evaluation.evaluate import evaluate
from querybox.exporting import onnx, openvino, torch
from querybox.exporting.card import Card, Precision
from querybox.exporting.check import Proof, prove
from querybox.exporting.engine import ExportedModel
from querybox.exporting.graph import decoder_nodes, trace
from querybox.exporting.load import load_exported
from querybox.exporting.quantise import quantise
from querybox.modules.detector import DetectionTransformer

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and what is known of it."""

    files: tuple[Path, ...]
    """The file; for OpenVINO also the ``.bin`` with its weights, which has to stay beside it."""
    proof: Proof
    """How close the answers are to the detector's. With int8, and with bf16 where queries are made of proposals, they
    are those of the model in float32, before rounding."""
    AP: tuple[float, float] | None = None
    """With int8: average precision on the calibration data in float32 and in int8, 0-1."""


def export(
    detector: DetectionTransformer,
    path: str | Path,
    *,
    to: Format,
    precision: Precision = "float32",
    calibration: DetectionData | None = None,
) -> Exported:
    """Write a detector to a file that other programs run, and prove that it answers as the detector does.

    The file takes images of any size in batches of any size. Normalisation, the padding mask and postprocessing are
    inside; `querybox.exporting.card` has its inputs and outputs. It says of itself what its classes are and how images
    are resized.

    Args:
        detector: The model; its mode is left as it was found.
        path: The file, ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (PyTorch).
        to: The format.
        precision: What it is computed in. ``"bf16"`` and ``"int8"`` need ``to="openvino"``.
        calibration: With ``"int8"``: labelled images like those that the model will see.

    Raises:
        ConfigError: The arguments do not fit together, or the classes of the calibration data are not the detector's.
        ExportError: The answers differ; nothing was written.
        MissingExtraError: The packages of the format are not installed.
    """
    path = Path(path)
    check_arguments(path, to, precision, calibration)
    program, card = trace(detector), Card.of(detector, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        if to == "openvino" and calibration is not None:
            proof, precisions = write_int8(program, draft, card, detector, calibration)
        else:
            proof, precisions = prove(detector, write_model(program, draft, card, detector, to)), None
        written = [file.replace(path.parent / file.name) for file in sorted(draft.parent.iterdir())]
    return Exported(files=tuple(sorted(written, key=path.__ne__)), proof=proof, AP=precisions)


def check_arguments(path: Path, to: Format, precision: Precision, calibration: DetectionData | None) -> None:
    """Raise ConfigError where the arguments of `export` do not fit together."""
    if path.suffix != SUFFIXES[to]:
        raise ConfigError(f"{path}: a file for {to} ends in {SUFFIXES[to]}")
    if precision != "float32" and to != "openvino":
        raise ConfigError(
            f"export got precision '{precision}' for {to}; only openvino has it, others are float32"
        )
    if (precision == "int8") != (calibration is not None):
        raise ConfigError("export: precision 'int8' and calibration data need each other")


def write_model(
    program: ExportedProgram, path: Path, card: Card, detector: DetectionTransformer, to: Format
) -> ExportedModel:
    """Write the model; return what has to answer as the detector does: the file, opened again."""
    match to:
        case "onnx":
            onnx.write(program, path, card)
        case "torch":
            torch.write(program, path, card)
        case "openvino":
            model = openvino.convert(program)
            openvino.write(model, path, card)
            if card.precision == "bf16" and detector.proposes_queries:
                # Rounded scores choose other proposals, and then there is no answer to compare.
                return openvino.in_float32(model, card)
    return load_exported(path, trusted=True)


def write_int8(
    program: ExportedProgram, path: Path, card: Card, detector: DetectionTransformer, data: DetectionData
) -> tuple[Proof, tuple[float, float]]:
    """Write the model in int8; return the proof of what was quantised, and its AP before and after."""
    model = openvino.convert(program)
    before = openvino.in_float32(model, card)
    proof = prove(detector, before)
    AP_before = evaluate(before, data).metrics["AP"]
    openvino.write(quantise(model, decoder_nodes(program), data, card.preprocessing), path, card)
    return proof, (AP_before, evaluate(openvino.load(path), data).metrics["AP"])
