"""From what a person calls a model to the detector."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querybox.checkpoints.hub import is_hub_name
from querybox.errors import CheckpointError

if TYPE_CHECKING:
    from querybox.detector import Detector

RUN = ("best.safetensors", "last.safetensors")
"""Weights in the folder of a training run, the preferred first."""
HUGGINGFACE = "config.json"
"""In every Hugging Face folder."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".index.json")


def is_model(path: Path) -> bool:
    """Tell a weights file, a folder with one, or a name on the hub from a dataset."""
    is_file = path.name.endswith(SUFFIXES) or is_hub_name(path)
    return is_file or any((path / name).is_file() for name in (*RUN, HUGGINGFACE))


def find_model(path: Path) -> Path:
    """Return the weights file or Hugging Face folder that `path` is, or the best weights of the run folder that it is.

    Raises:
        CheckpointError: There is none.
    """
    for name in RUN:
        if (path / name).is_file():
            return path / name
    if not path.is_dir() or (path / HUGGINGFACE).is_file():
        return path  # reading it says what is wrong with it
    raise CheckpointError(
        f"{path}: the folder holds neither {' nor '.join(RUN)} nor {HUGGINGFACE}; expected a run folder, a Hugging "
        "Face folder, or a weights file: name the file, or train first"
    )


def load_model(path: Path) -> Detector:
    """Load a detector from a file of any layout onto the accelerator, where there is one."""
    from querybox.detector import Detector
    from querybox.inference.engine import accelerator

    return Detector.from_checkpoint(find_model(path)).to(accelerator())
