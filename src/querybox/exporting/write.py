"""Export of a detector: trace, write, load again, and verify before the file is moved into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import device
from torch.export import ExportedProgram

from querybox.arguments import require_path, require_size, require_type
from querybox.checkpoints.find import EXPORTED, Format
from querybox.data import DetectionData
from querybox.errors import ConfigError
from querybox.evaluation.evaluate import evaluate
from querybox.evaluation.result import Evaluation
from querybox.exporting import executorch, onnx, openvino, torch
from querybox.exporting.card import Card, ExportedPrecision
from querybox.exporting.check import Verification, verify, verify_detections
from querybox.exporting.engine import ExportedModel
from querybox.exporting.graph import decoder_nodes, min_side, trace
from querybox.exporting.half import halve
from querybox.exporting.load import read_exported
from querybox.exporting.quantise import quantise
from querybox.files import move, telling_full_disk
from querybox.modules.detector import DetectionTransformer
from querybox.precision import is_native
from querybox.temporary import temporary_folder

SMALLEST = 64
"""Smallest side of a fixed size in pixels."""
ONLY: dict[ExportedPrecision, Format] = {"bf16": "openvino", "fp16": "onnx", "int8": "openvino"}
"""The only format of a precision. All formats have float32."""
BYTES: dict[ExportedPrecision, int] = {"float32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Size of a weight in each precision."""
FIXED: frozenset[Format] = frozenset({"executorch"})
"""Formats whose files take images of one size only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The result of an export."""

    files: tuple[Path, ...]
    """The files written; for OpenVINO also the ``.bin`` with the weights, which has to stay beside the ``.xml``."""
    verification: Verification
    """Differences from the detector. With int8, and with bf16 and fp16 if queries are made from proposals, they are
    those of the model in float32, before rounding."""
    AP: tuple[float, float] | None = None
    """AP on the calibration data in float32 and in int8, 0-1; None for other precisions."""
    AP_masks: tuple[float, float] | None = None
    """AP of masks on the calibration data, likewise; None if the detector or the data have none."""


def export(
    detector: DetectionTransformer,
    path: str | Path,
    *,
    to: Format,
    precision: ExportedPrecision | Literal["auto"] = "float32",
    size: tuple[int, int] | None = None,
    calibration: DetectionData | None = None,
    callback: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Export a detector to a file that runs without querybox, and verify that its outputs equal the detector's.

    The exported model accepts images and batches of any size, or one image of a fixed size. It includes normalisation,
    the padding mask and postprocessing; see `querybox.exporting.card` for its inputs and outputs. Its metadata contain
    the classes and the size to which images are resized.

    Args:
        detector: The model; its training mode does not change.
        path: The file to write: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (PyTorch) or ``.pte`` (ExecuTorch).
        to: The format.
        precision: Precision of the computations. ``"bf16"`` and ``"int8"`` require ``to="openvino"``, ``"fp16"``
            ``to="onnx"``. ``"auto"`` is bf16 for OpenVINO if this machine's CPU computes it natively, otherwise
            float32.
        size: Fixed (height, width) of the images, for the lowest latency: each is resized to this size if the detector
            stretches images, otherwise to fit and padded. None for any size; required for ``"executorch"``.
        calibration: For ``"int8"``: labelled images representative of those that the model will be used on.
        callback: Called with the name of each stage as it begins, e.g. to show progress: ``"tracing"``, ``"writing"``,
            ``"verifying"``; for int8 also ``"evaluating in float32"``, ``"quantising"``, ``"evaluating in int8"``.

    Raises:
        ConfigError: An argument is invalid, the arguments are inconsistent, or the calibration data have other classes
            than the detector.
        DiskFullError: There is no space for the file.
        ExportError: The outputs differ; nothing was written.
        MissingExtraError: The packages of the format are not installed.
    """
    path = require_path("export", path, "the file to write")
    check_values(detector, to, precision)
    precision = exported_precision(precision, to)
    if size is not None:
        require_size("export", size, SMALLEST)
    check_arguments(path, to, precision, size, calibration)
    callback("tracing")
    card = Card.of(detector, precision, size)
    program = trace(detector, size, padded=card.padded)
    if size is None:
        card = dataclasses.replace(card, min_side=min_side(program))
    weights = BYTES[precision] * sum(weight.numel() for weight in detector.parameters())
    with temporary_folder(path) as folder, telling_full_disk(path, weights):
        draft = folder / path.name
        if to == "openvino" and calibration is not None:
            verification, evaluations = write_int8(program, draft, card, detector, calibration, callback)
        else:
            verification = write_verified(program, draft, card, detector, to, callback)
            evaluations = None
        written = [path.parent / file.name for file in sorted(draft.parent.iterdir())]
        for file in written:
            move(draft.with_name(file.name), file)
    return Exported(
        files=(path, *(file for file in written if file != path)),
        verification=verification,
        AP=evaluations and average_precisions([each.metrics for each in evaluations]),
        AP_masks=evaluations
        and average_precisions([each.masks.metrics for each in evaluations if each.masks]),
    )


def average_precisions(metrics: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """Return the AP of the two evaluations, or None if there are none."""
    return (metrics[0]["AP"], metrics[1]["AP"]) if metrics else None


def exported_precision(precision: ExportedPrecision | Literal["auto"], to: Format) -> ExportedPrecision:
    """Return the precision to export in: for ``"auto"`` bf16 if the format has it and this CPU computes it natively."""
    if precision != "auto":
        return precision
    return "bf16" if to == "openvino" and is_native("bf16", device("cpu")) else "float32"


def check_values(detector: object, to: object, precision: object) -> None:
    """Raise `ConfigError` if an argument of `export` is of another type, or not one of the choices."""
    cure = "a Detector: pass the one that it was made from, or load its checkpoint with querybox.load"
    require_type("export", detector, DetectionTransformer, cure)
    assert isinstance(detector, DetectionTransformer)
    for name, value, choices in (
        ("to", to, EXPORTED),
        ("precision", precision, ("auto", *get_args(ExportedPrecision))),
    ):
        if value not in choices:
            raise ConfigError(f"export got {name}={value!r}; expected one of {', '.join(map(repr, choices))}")


def check_arguments(
    path: Path,
    to: Format,
    precision: ExportedPrecision,
    size: tuple[int, int] | None,
    calibration: DetectionData | None,
) -> None:
    """Raise `ConfigError` if the arguments of `export` are inconsistent."""
    if path.suffix != EXPORTED[to]:
        raise ConfigError(f"{path}: expected the suffix {EXPORTED[to]} for {to}")
    only = ONLY.get(precision, to)
    if to != only:
        raise ConfigError(
            f"export got precision '{precision}' for {to}; only {only} supports it; expected float32"
        )
    if (precision == "int8") != (calibration is not None):
        raise ConfigError(
            "export: precision 'int8' requires calibration data, and calibration data require 'int8'"
        )
    if size is None and to in FIXED:
        raise ConfigError(
            f"export got no size for {to}, whose files take images of one size; expected (height, width) in pixels: "
            "pass size=(640, 640), or --size 640x640"
        )


def write_verified(
    program: ExportedProgram,
    path: Path,
    card: Card,
    detector: DetectionTransformer,
    to: Format,
    callback: Callable[[str], object],
) -> Verification:
    """Write the model and verify it.

    The model is released on return: while it is mapped into memory, Windows cannot move its file.
    """
    callback("writing")
    model = write_model(program, path, card, detector, to)
    callback("verifying")
    return verify(detector, model)


def write_model(
    program: ExportedProgram, path: Path, card: Card, detector: DetectionTransformer, to: Format
) -> ExportedModel:
    """Write the model; return the model to verify, normally the file loaded again."""
    match to:
        case "onnx":
            return write_onnx(program, path, card, detector)
        case "torch":
            torch.write(program, path, card)
        case "executorch":
            executorch.write(program, path, card)
        case "openvino":
            model = openvino.convert(program, card)
            openvino.write(model, path, card)
            if card.precision == "bf16" and detector.proposes_queries:
                # Rounded scores select other proposals, so the outputs could not be compared.
                return openvino.in_float32(model, card)
    return read_exported(path, trusted=True)


def write_onnx(
    program: ExportedProgram, path: Path, card: Card, detector: DetectionTransformer
) -> ExportedModel:
    """Write an ONNX model, in fp16 if the card says so; return the model to verify.

    A file in fp16 is verified with the roundings of GPUs. Rounded scores select other proposals, whose outputs could
    not be compared. Then the model to verify is that before rounding, and only the detections of the file are checked
    here, against its own logits and boxes.
    """
    model = onnx.convert(program, card)
    exact = onnx.in_float32(model, card) if card.precision == "fp16" and detector.proposes_queries else None
    if card.precision == "fp16":
        halve(model)
    onnx.write(model, path, card)
    written = onnx.load(path)  # also in fp16, because the file itself has to open
    if card.precision == "float32":
        return written
    rounded = onnx.rounding(path, card)
    if exact is None:
        return rounded
    verify_detections(rounded)
    return exact


def write_int8(
    program: ExportedProgram,
    path: Path,
    card: Card,
    detector: DetectionTransformer,
    data: DetectionData,
    callback: Callable[[str], object],
) -> tuple[Verification, tuple[Evaluation, Evaluation]]:
    """Write the model in int8; return the verification in float32, and evaluations before and after quantisation."""
    callback("writing")
    model = openvino.convert(program, card)
    before = openvino.in_float32(model, card)
    callback("verifying")
    verification = verify(detector, before)
    callback("evaluating in float32")
    evaluation = evaluate(before, data)
    callback("quantising")
    openvino.write(quantise(model, decoder_nodes(program), data, card), path, card)
    callback("evaluating in int8")
    return verification, (evaluation, evaluate(openvino.load(path), data))
