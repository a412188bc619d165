"""The native file format: safetensors, with a card in the header from which the detector is rebuilt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from querybox.checkpoints.damage import cure
from querybox.checkpoints.files import read_safetensors, require_utf8, save_tensors
from querybox.checkpoints.find import require_file
from querybox.errors import CheckpointError
from querybox.files import atomic, flush

FAMILY = "querybox-"
"""Beginning of the identifiers of all file formats, also of those to come."""
FORMAT = "querybox-1"
"""Identifier of a detector's file."""
RUN = "querybox-run-1"
"""Identifier of the file with the training state of a run."""


def write(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], *, mark: str = FORMAT) -> None:
    """Write tensors and their card, atomically. An existing file is replaced once the new one was read back.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.
        card: JSON-serialisable values.
        mark: Identifier of the file format.

    Raises:
        DiskFullError: There is no space for it.
        CheckpointError: Reading the file back gave different content, or the path is not UTF-8.
    """
    require_utf8(path)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(card)
    expected = checksum(sorted(contiguous.items()), text)
    size = sum(tensor.nbytes for tensor in contiguous.values()) + len(text)
    with atomic(path, size=size) as temporary:
        save_tensors(contiguous, temporary, {"format": mark, "checksum": expected, "card": text})
        if read_back(temporary) != expected:
            raise CheckpointError(
                f"{path}: what was read back is not what was written; an existing file of this name is unchanged. "
                "The disk or the memory is faulty: write to another disk"
            )


def read_back(path: Path) -> str:
    """Return the checksum of the file on the disk; an empty string if it cannot be read."""
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
    """Read a file written by `write`.

    Args:
        path: The file.
        mark: Identifier of the expected file format.
        kind: The expected file format in words, for the message.

    Raises:
        CheckpointError: The file is missing, corrupt, or of another format.
    """
    require_file(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != mark:
        got = metadata.get("format", "a file without a format")
        if got == RUN:
            raise CheckpointError(
                f"{path}: expected {kind}, got the training state of a run; open its folder, or best.safetensors or "
                "last.safetensors beside it"
            )
        if re.fullmatch(rf"{FAMILY}[a-z-]*\d+", got) and got not in (FORMAT, RUN):
            raise CheckpointError(
                f"{path}: has the format '{got}' of a newer querybox, this one reads '{mark}'; upgrade it: "
                "pip install --upgrade querybox (or copy the file again: its header may be corrupt)"
            )
        raise CheckpointError(
            f"{path}: expected {kind} ('{mark}'), got {got}: another kind of file, or corrupt; {cure(path)}"
        )
    items = sorted(tensors.items())
    if all(metadata.get("checksum") != checksum(items, text) for text in (metadata.get("card", ""), "")):
        raise CheckpointError(f"{path}: corrupt file, its checksum does not match; {cure(path)}")
    try:
        card: dict[str, Any] = dict(json.loads(metadata["card"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: corrupt file, its header cannot be read ({error}); {cure(path)}"
        ) from error
    return tensors, card


def is_native(path: Path) -> bool:
    """Return whether a file was written by `write`, also of a newer version, according to its header."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format", "").startswith(FAMILY)
    except (SafetensorError, OSError, ValueError):
        return False  # reading it raises a specific error


def checksum(tensors: Iterable[tuple[str, Tensor]], card: str = "") -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of the tensors, in the given order, and of the card.

    The checksum in early files does not include the card.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(card.encode())
    return digest.hexdigest()
