"""From what a person calls a model to what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from querybox.engine import Engine

EXPORTED = (".onnx", ".xml", ".pt2")


def load_engine(path: Path, *, trusted: bool) -> Engine:
    """Open an exported model, or load a detector from a file of any layout.

    Args:
        path: The file or folder.
        trusted: The person says that code in the file may run.

    Raises:
        CheckpointError: It cannot be read.
    """
    if path.suffix not in EXPORTED:
        from querybox.cli.model import load_model

        return load_model(path)

    from querybox.export import load_engine as load

    return load(path, trusted=trusted)
