"""PyTorch's exported programs, and running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from querybox.errors import CheckpointError, ConfigError
from querybox.exporting.card import KEY, OUTPUTS, Card
from querybox.exporting.engine import Answers, ExportedModel

FILE = f"{KEY}.json"


def write(program: ExportedProgram, path: Path, card: Card) -> None:
    """Write a traced detector."""
    torch.export.save(program, path, extra_files={FILE: card.to_json()})


def load(path: Path, *, trusted: bool) -> ExportedModel:
    """Open a file that `write` wrote.

    Raises:
        CheckpointError: The file is corrupt or not querybox's, or the caller does not trust it.
    """
    if not trusted:
        raise CheckpointError(
            f"{path}: PyTorch executes code that a .pt2 file may hold; if you trust where it is from, say so: "
            "--trust, or querybox.load(path, trusted=True)"
        )
    extra: dict[str, Any] = {FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: corrupt, or no exported program ({reason})") from error
    card = Card.from_json(extra[FILE], path)
    module = program.module()

    def run(pixels: Tensor, sizes: Tensor) -> Answers:
        try:
            with torch.inference_mode():
                return dict(zip(OUTPUTS, module(pixels, sizes), strict=True))
        except AssertionError as error:  # the program checks what its trace took for granted
            raise ConfigError(
                f"{path}: cannot run images of {list(pixels.shape[2:])} pixels ({error}); "
                "it needs more pixels a side than a cell of the feature map has"
            ) from error

    return ExportedModel(card, run)
