"""querybox's own file: safetensors, with a card in its header that says how to rebuild the detector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from querybox.checkpoints.files import read_safetensors, save_tensors
from querybox.checkpoints.find import require_file
from querybox.errors import CheckpointError
from querybox.files import atomic, flush

FORMAT = "querybox-1"


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, mark: str = FORMAT) -> None:
    """Write tensors and their card, atomically; what was there before goes when the new file was read back.

    Args:
        path: The file.
        tensors: By name, on any device.
        card: Plain values that JSON can hold.
        mark: Says what kind of file it is.

    Raises:
        DiskFullError: There is no room for it.
        CheckpointError: What was read back is not what was written.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(card)
    known = checksum(sorted(held.items()), text)
    size = sum(tensor.nbytes for tensor in held.values()) + len(text)
    with atomic(path, size=size) as temporary:
        save_tensors(held, temporary, {"format": mark, "checksum": known, "card": text})
        if read_back(temporary) != known:
            raise CheckpointError(
                f"{path}: what was read back is not what was written; an older file of this name is intact. "
                "The disk or the memory is at fault: write to another disk"
            )


def read_back(path: Path) -> str:
    """Return the checksum of what lies on the disk, one tensor after the other; of nothing, if it cannot be read."""
    flush(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
            return checksum(tensors, (file.metadata() or {}).get("card", ""))
    except (SafetensorError, OSError, ValueError):
        return ""


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
    held = sorted(tensors.items())
    if known not in (checksum(held, metadata.get("card", "")), checksum(held)):
        raise CheckpointError(f"{path}: corrupt file, its checksum does not match; copy or save it again")
    try:
        card: dict[str, Any] = dict(json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt file, its header cannot be read ({error})") from error
    return tensors, card


def is_ours(path: Path) -> bool:
    """Tell a file that `write` wrote from others, by its header."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError, ValueError):
        return False  # whoever reads it says what is wrong with it


def checksum(tensors: Iterable[tuple[str, Tensor]], card: str = "") -> str:
    """Return a SHA-256 over names, types, shapes, bytes of the tensors, in the order of their names, and the card.

    Early files have one without the card.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(card.encode())
    return digest.hexdigest()
