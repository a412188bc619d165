"""Writing `torch.export` programs, and running them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from querybox.errors import CheckpointError
from querybox.exporting.card import EXPORT_AGAIN, KEY, Card
from querybox.exporting.deserialisation import sizes_parsed_once
from querybox.exporting.engine import ExportedModel, Outputs
from querybox.memory import first_line

FILE = f"{KEY}.json"


def write(program: ExportedProgram, path: Path, card: Card) -> None:
    """Write a traced detector as a ``.pt2`` file."""
    content = io.BytesIO()  # PyTorch ends the process if it writes to a disk that is full
    torch.export.save(program, content, extra_files={FILE: card.to_json()})
    path.write_bytes(content.getbuffer())


def load(path: Path, *, trusted: bool) -> ExportedModel:
    """Load a file written by `write`.

    Raises:
        CheckpointError: The file is corrupt or not exported by querybox, or `trusted` is False.
    """
    if not trusted:
        raise CheckpointError(
            f"{path}: PyTorch may execute code contained in a .pt2 file; if you trust its source, pass "
            "--trust, or querybox.load(path, trusted=True)"
        )
    extra: dict[str, Any] = {FILE: ""}
    try:
        with sizes_parsed_once():
            program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise CheckpointError(
            f"{path}: corrupt, or not an exported program ({first_line(error)}); {EXPORT_AGAIN}"
        ) from error
    card = Card.from_json(extra[FILE], path)
    module = program.module()

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        # An outer autocast would change the types that the program was traced with.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            return dict(zip(card.outputs, module(pixels, sizes), strict=True))

    return ExportedModel(card, run)
