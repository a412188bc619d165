"""querybox's own file: safetensors, with a card in its header that says how to rebuild the detector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from querybox.errors import CheckpointError
from querybox.weights.files import atomic, read_safetensors, require_file

FORMAT = "querybox-1"


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, mark: str = FORMAT) -> None:
    """Write tensors and their card, atomically.

    Args:
        path: The file.
        tensors: By name, on any device.
        card: Plain values that JSON can hold.
        mark: Says what kind of file it is.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(card)
    metadata = {"format": mark, "checksum": checksum(held, text), "card": text}
    with atomic(path) as temporary:
        save_file(held, temporary, metadata=metadata)


def read(
    path: Path, *, mark: str = FORMAT, kind: str = "a detector that querybox saved"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Args:
        path: The file.
        mark: Of the kind of file that is expected.
        kind: The same in words, for the message.

    Raises:
        CheckpointError: The file is missing, not querybox's, or corrupt.
    """
    require_file(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != mark:
        got = metadata.get("format", "a file without such a mark")
        raise CheckpointError(
            f"{path}: expected {kind} ('{mark}'), got {got}: another kind of file, or corrupt"
        )
    known = metadata.get("checksum")
    if known != checksum(tensors, metadata.get("card", "")) and known != checksum(tensors):
        raise CheckpointError(f"{path}: corrupt file, its checksum does not match; copy or save it again")
    try:
        card: dict[str, Any] = dict(json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt file, its header cannot be read ({error})") from error
    return {name: tensor.clone() for name, tensor in tensors.items()}, card  # the file may go or change


def is_ours(path: Path) -> bool:
    """Tell a file that `write` wrote from others, by its header."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError, ValueError):
        return False  # whoever reads it says what is wrong with it


def checksum(tensors: Mapping[str, Tensor], card: str = "") -> str:
    """Return a SHA-256 over names, types, shapes, bytes of all tensors, and the card (but in early files)."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(card.encode())
    return digest.hexdigest()
