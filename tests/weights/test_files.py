"""Weight files are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from querybox.errors import CheckpointError
from querybox.weights.files import atomic, read_checkpoint_file

EXECUTED: list[str] = []


class Malicious:
    def __reduce__(self) -> Any:
        return EXECUTED.append, ("code ran",)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"model": x}, lambda x: {"weight": torch.ones(1), "extra": x}]
)
def test_pickles_are_never_executed(tmp_path: Path, wrap: Any) -> None:
    file = tmp_path / "model.pth"
    torch.save(wrap(Malicious()), file)
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_checkpoint_file(file)
    file.write_bytes(pickle.dumps(wrap(Malicious()), protocol=2))
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        read_checkpoint_file(file)
    assert EXECUTED == []


def test_wrappers_are_opened(tmp_path: Path) -> None:
    for wrapper in ("model", "state_dict"):
        torch.save({wrapper: {"weight": torch.ones(2)}, "epoch": 3}, tmp_path / "model.pth")
        assert torch.equal(read_checkpoint_file(tmp_path / "model.pth").tensors["weight"], torch.ones(2))


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04broken"])
def test_other_files_are_errors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt, or no weights file"):
        read_checkpoint_file(tmp_path / name)


def test_missing_and_misfit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such weights file"):
        read_checkpoint_file(tmp_path / "absent.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a mapping of names to tensors, got list"):
        read_checkpoint_file(tmp_path / "list.pth")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "run" / "model.bin"
    with atomic(file) as temporary:
        temporary.write_text("old")

    def write_half() -> None:
        with atomic(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert file.read_text() == "old"
    assert [path.name for path in file.parent.iterdir()] == ["model.bin"]
