"""The models that commands work with, on the accelerator where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from querybox.errors import ConfigError

if TYPE_CHECKING:
    from querybox.detector import Detector
    from querybox.inference.engine import Engine

Precision = Literal["float32", "bf16"]


def load_detector(path: Path) -> Detector:
    """Load a detector from whatever `Detector.load` reads."""
    from querybox.detector import Detector
    from querybox.inference.engine import accelerator

    return Detector.load(path).to(accelerator())


def load_model(path: Path, *, trusted: bool, precision: Precision = "float32") -> Engine:
    """Open whatever `querybox.load` opens.

    Args:
        path: The file or folder.
        trusted: Code in the file may be executed.
        precision: What a detector computes in.

    Raises:
        CheckpointError: It cannot be read.
        ConfigError: `precision` is asked of an exported model.
    """
    import torch

    from querybox.detector import load
    from querybox.exporting import EXPORTED

    if path.suffix not in EXPORTED:
        detector = load_detector(path)
        return detector.optimize(dtype=torch.bfloat16) if precision == "bf16" else detector
    if precision != "float32":
        raise ConfigError(
            f"{path}: --precision {precision} got an exported model, which keeps the precision it was exported in; "
            "leave --precision out, or export the model anew"
        )
    return load(path, trusted=trusted)
