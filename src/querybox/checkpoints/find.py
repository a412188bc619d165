"""The weights file that a path or a name refers to: a file, a run folder, a Hugging Face folder, a name on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from querybox.checkpoints.hub import CONFIG, WEIGHTS, fetch, is_hub_name
from querybox.errors import CheckpointError

BEST, LAST = "best.safetensors", "last.safetensors"
"""Detectors in the folder of a training run; the best is preferred."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".index.json")
"""Suffixes of weights files, or of indices of sharded ones."""
Format = Literal["onnx", "openvino", "torch"]
EXPORTED: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""Suffixes of exported models, by format."""
OTHER_KINDS = {
    **dict.fromkeys(EXPORTED.values(), "an exported model; open it with querybox.load"),
    **dict.fromkeys((".yaml", ".yml"), "a run file; train with it: querybox train"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"), "an image"),
    **dict.fromkeys((".json", ".csv", ".txt"), "text, such as annotations or settings"),
    **dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), "a TensorFlow model, which querybox does not read"),
    **dict.fromkeys((".engine", ".plan"), "a TensorRT engine, which querybox does not read"),
    **dict.fromkeys((".mlmodel", ".mlpackage"), "a Core ML model, which querybox does not read"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z"), "an archive; unpack it first"),
}
"""Descriptions of files with other suffixes."""


def is_model(path: Path) -> bool:
    """Return whether a path is a weights file, a folder with one, or a name on the Hub, rather than a dataset."""
    is_file = path.name.endswith(SUFFIXES) or is_hub_name(path)
    return is_file or any((path / name).is_file() for name in (BEST, LAST, CONFIG))


def is_exported(path: Path) -> bool:
    """Return whether the suffix of a path is that of an exported model, in lower or upper case."""
    return path.suffix.lower() in EXPORTED.values()


def find_weights(path: str | Path) -> Path:
    """Return the weights file that `path` refers to.

    Args:
        path: A weights file, or the index of a sharded one; the folder of a run, for its best detector; a Hugging Face
            folder; or ``hf://owner/name``, optionally with ``@revision``, which is downloaded.

    Raises:
        CheckpointError: There is no weights file, or `path` is a file of another kind.
    """
    path = fetch(path).folder if is_hub_name(path) else Path(path)
    if path.is_dir():
        for name in (BEST, LAST, *WEIGHTS):
            if (path / name).is_file():
                return path / name
        raise CheckpointError(
            f"{path}: the folder holds neither the detector of a run ({BEST}, {LAST}) nor Hugging Face's weights "
            f"({', '.join(WEIGHTS)}); name the weights file, or train first"
        )
    require_file(path)
    if not path.name.endswith(SUFFIXES) and (kind := OTHER_KINDS.get(path.suffix.lower())):
        raise CheckpointError(f"{path}: expected a detector's weights ({', '.join(SUFFIXES)}), got {kind}")
    return path


def require_file(path: Path) -> None:
    """Raise CheckpointError unless the file exists."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file; expected a checkpoint, or the folder of a run: check the path"
        )
