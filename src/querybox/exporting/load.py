"""Loading of exported models in all formats."""

from __future__ import annotations

from pathlib import Path

from querybox.errors import CheckpointError
from querybox.exporting import executorch, onnx, openvino, torch
from querybox.exporting.check import probe
from querybox.exporting.engine import ExportedModel
from querybox.files import require_regular


def load_exported(path: str | Path, *, trusted: bool = False) -> ExportedModel:
    """Load an exported model, and run it once on a small image.

    Its suffix determines the format: ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (PyTorch) or ``.pte`` (ExecuTorch).

    Args:
        path: The file.
        trusted: Required for ``.pt2`` and ``.pte``, because such a file may execute code.

    Raises:
        CheckpointError: The file is missing, corrupt, not exported by querybox, or not trusted; or the outputs of the
            model do not fit its card.
        MissingExtraError: The package that runs the format is not installed.
    """
    model = read_exported(Path(path), trusted=trusted)
    probe(model, path)
    return model


def read_exported(path: Path, *, trusted: bool) -> ExportedModel:
    """Load an exported model without running it; see `load_exported`."""
    require_regular(path, CheckpointError)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected an exported model: check the path, or export it first"
        )
    match path.suffix.lower():
        case ".onnx":
            return onnx.load(path)
        case ".xml":
            return openvino.load(path)
        case ".pt2":
            return torch.load(path, trusted=trusted)
        case ".pte":
            return executorch.load(path, trusted=trusted)
    raise CheckpointError(
        f"{path}: expected an exported model, .onnx, .xml, .pt2 or .pte, got '{path.suffix}'"
    )
