"""The weights file that a path or a name refers to: a file, a run folder, a Hugging Face folder, a name on the Hub."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from querybox.checkpoints.hub import CONFIG, NAME, WEIGHTS, fetch, is_hub_name
from querybox.errors import CheckpointError
from querybox.files import require_regular

if TYPE_CHECKING:
    from querybox.models import PublicWeights

BEST, LAST = "best.safetensors", "last.safetensors"
"""Detectors in the folder of a training run; the best is preferred."""
CHECKPOINT = "checkpoint.safetensors"
"""The state of a training run in its folder, from which it is resumed."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".index.json")
"""Suffixes of weights files, or of indices of sharded ones."""
Format = Literal["onnx", "openvino", "torch", "executorch"]
EXPORTED: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2", "executorch": ".pte"}
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


def find_public(path: str | Path) -> PublicWeights | None:
    """Return the public weights with this short name or name on the Hub, unless there is a file or folder of it."""
    if Path(path).exists():
        return None
    from querybox.models import PUBLIC_WEIGHTS  # takes a second, which commands need not spend on a dataset

    if match := NAME.fullmatch(Path(path).as_posix()):
        source = f"hf://{match['repository']}"
        return next((each for each in PUBLIC_WEIGHTS.values() if each.source == source), None)
    return PUBLIC_WEIGHTS.get(str(path))


def nearest_public(path: str | Path) -> str | None:
    """Return the short name of public weights that is most similar to a path that does not exist, if any is."""
    path = Path(path)
    if path.exists() or path.suffix:
        return None
    from querybox.models import PUBLIC_WEIGHTS

    return next(iter(difflib.get_close_matches(path.name.lower(), PUBLIC_WEIGHTS, n=1)), None)


def resolve_name(path: str | Path) -> str | Path:
    """Return the name on the Hub that a short name of public weights stands for, or the path unchanged.

    Raises:
        CheckpointError: The weights are not on the Hub.
    """
    weights = None if is_hub_name(path) else find_public(path)
    if weights is None:
        return path
    if not weights.on_hub:
        raise CheckpointError(
            f"{path}: these weights are not on the Hugging Face Hub; download {weights.source} and pass the path of "
            f"the file instead of the name{f', with {weights.not_stated}' if weights.not_stated else ''}"
        )
    return weights.source


def is_model(path: Path) -> bool:
    """Return whether a path is a weights file, a folder with one, or a name of weights, rather than a dataset."""
    is_file = path.name.endswith(SUFFIXES) or is_hub_name(path) or find_public(path) is not None
    return is_file or any((path / name).is_file() for name in (BEST, LAST, CONFIG))


def is_exported(path: Path) -> bool:
    """Return whether the suffix of a path is that of an exported model, in lower or upper case."""
    return path.suffix.lower() in EXPORTED.values()


def find_weights(path: str | Path) -> Path:
    """Return the weights file that `path` refers to.

    Args:
        path: A weights file, or the index of a sharded one; the folder of a run, for its best detector; a Hugging Face
            folder; ``hf://owner/name``, optionally with ``@revision``, which is downloaded; or a short name in
            `querybox.models.PUBLIC_WEIGHTS`.

    Raises:
        CheckpointError: There is no weights file, or `path` is a file of another kind.
    """
    path = resolve_name(path)
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
    """Raise CheckpointError unless the file exists and is a regular one."""
    try:
        require_regular(path, CheckpointError)
        exists = path.is_file()
    except PermissionError:
        exists = True
    if exists and not os.access(path, os.R_OK):
        raise CheckpointError(
            f"{path}: no permission to read it, or a folder that it is in: change its permissions"
        )
    if not exists:
        near = nearest_public(path)
        hint = f". Did you mean the public weights '{near}'?" if near else ""
        raise CheckpointError(
            f"{path}: no such weights file; expected a checkpoint, or the folder of a run: check the path{hint}"
        )
