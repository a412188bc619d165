"""From what a person calls a model to what runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from querybox.errors import ConfigError

if TYPE_CHECKING:
    from querybox.inference.engine import Engine

Precision = Literal["float32", "bf16"]


def load_engine(path: Path, *, trusted: bool, precision: Precision = "float32") -> Engine:
    """Open an exported model, or load a detector from a file of any layout.

    Args:
        path: The file or folder.
        trusted: The person says that code in the file may run.
        precision: What a detector computes in.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: `precision` is asked of an exported model.
    """
    from querybox.exporting.write import SUFFIXES

    if path.suffix not in SUFFIXES.values():
        import torch

        from querybox.cli.model import load_model

        detector = load_model(path)
        return detector.optimize(dtype=torch.bfloat16) if precision == "bf16" else detector
    if precision != "float32":
        raise ConfigError(
            f"{path}: --precision {precision} got an exported model, which keeps the precision it was exported in; "
            "leave --precision out, or export the model anew"
        )

    from querybox.exporting import load_engine as load

    return load(path, trusted=trusted)
