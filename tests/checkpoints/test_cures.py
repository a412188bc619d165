"""What is advised for a damaged file fits where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from querybox.checkpoints.native import read
from querybox.errors import CheckpointError
from querybox.training.checkpoint import RunCheckpoint


@pytest.mark.parametrize(
    ("file", "beside", "cure"),
    [
        (
            "run/checkpoint.safetensors",
            "last.safetensors",
            r"restore it from a copy, or start a new run from the last weights: --weights .*run.last\.safetensors$",
        ),
        (
            "run/checkpoint.safetensors",
            "run.yaml",
            r"restore it from a copy, or start a new run in another folder$",
        ),
        (
            "run/best.safetensors",
            "last.safetensors",
            r"restore it from a copy, or use .*run.last\.safetensors$",
        ),
        ("run/last.safetensors", "metrics.csv", r"restore it from a copy$"),
        ("photos/best.safetensors", None, r"copy or download it again, or write it again if you made it$"),
        (
            "lib/site-packages/a/models/a.safetensors",
            None,
            r"install its package again: pip install",
        ),
        (
            "hub/models--me--a/snapshots/12/model.safetensors",
            None,
            r"remove .*models--me--a, the copy in the Hub's",
        ),
    ],
)
def test_the_cure_fits(tmp_path: Path, file: str, beside: str | None, cure: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(100))
    if beside is not None:
        (path.parent / "run.yaml").write_text("")
        (path.parent / beside).write_text("")
    with pytest.raises(CheckpointError, match=cure):
        RunCheckpoint.read(path) if "checkpoint" in file else read(path)
