"""From what a person calls a model to the detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querybox.errors import CheckpointError

if TYPE_CHECKING:
    from querybox.detector import Detector

CHECKPOINTS = ("best.safetensors", "last.safetensors")


def find_model(path: Path) -> Path:
    """Return the weights file that `path` is, or the best one of the run folder that it is.

    Raises:
        CheckpointError: There is none.
    """
    if not path.is_dir():
        return path  # reading it says what is wrong with it
    for name in CHECKPOINTS:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path}: the folder holds neither {' nor '.join(CHECKPOINTS)}; expected a run folder or a .safetensors "
        "file: name the file, or train first"
    )


def load_model(path: Path) -> Detector:
    """Load a detector onto the accelerator, where there is one."""
    import torch

    from querybox.detector import Detector

    detector = Detector.load(find_model(path))
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return detector.to(accelerator or "cpu")
