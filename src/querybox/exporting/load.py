"""Opening an exported file: its ending tells the format."""

from __future__ import annotations

from pathlib import Path

from querybox.errors import CheckpointError
from querybox.exporting import onnx, openvino, torch
from querybox.exporting.engine import ExportedModel

EXPORTED = (".onnx", ".xml", ".pt2")
"""Suffixes of exported models."""


def load_exported(path: str | Path, *, trusted: bool = False) -> ExportedModel:
    """Open an exported model; its ending tells the format: ``.onnx``, ``.xml`` (OpenVINO) or ``.pt2`` (PyTorch).

    Args:
        path: The file.
        trusted: Needed for ``.pt2``, for PyTorch executes code that such a file may hold.

    Raises:
        CheckpointError: The file is missing, corrupt, not querybox's, or not trusted.
        MissingExtraError: The package that runs the format is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    match path.suffix:
        case ".onnx":
            return onnx.load(path)
        case ".xml":
            return openvino.load(path)
        case ".pt2":
            return torch.load(path, trusted=trusted)
    raise CheckpointError(f"{path}: expected an exported model, .onnx, .xml or .pt2, got '{path.suffix}'")
