"""Weight files are read without executing anything, and written whole or not at all."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections import Counter, OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from querybox.checkpoints.files import model_files, read_checkpoint_file
from querybox.errors import CheckpointError
from querybox.files import atomic

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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_facebookresearch_training_is_read(tmp_path: Path, zipped: bool) -> None:
    options = argparse.Namespace(lr=1e-4, dilation=True, nheads=8, output=Path("out"), scales=np.ones(2))
    content = {
        "model": {"weight": nn.Parameter(torch.ones(2))},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "epoch": np.int64(3),
        "args": options,
    }
    torch.save(content, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    file = read_checkpoint_file(tmp_path / "checkpoint.pth")
    assert {name: type(tensor) for name, tensor in file.tensors.items()} == {"weight": torch.Tensor}
    known = {name: file.metadata["args"][name] for name in ("lr", "dilation", "nheads")}
    assert known == {"lr": 1e-4, "dilation": True, "nheads": 8}
    torch.save(
        {**content, "args": vars(options)}, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped
    )
    assert read_checkpoint_file(tmp_path / "last.ckpt").metadata["args"]["dilation"] is True


@pytest.mark.parametrize("zipped", [True, False])
def test_an_mmengine_training_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    """Its message hub holds history buffers: arrays, and methods of the buffer's class."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self.log_history = np.array([1.0, 2.0])

        def min(self) -> None: ...

        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "statistics_methods": {"min": HistoryBuffer.min}}

    home = "mmengine.logging.history_buffer"
    module = ModuleType(home)
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    for part in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setitem(sys.modules, home, module)
    HistoryBuffer.__module__ = HistoryBuffer.min.__module__ = home
    HistoryBuffer.__qualname__, HistoryBuffer.min.__qualname__ = "HistoryBuffer", "HistoryBuffer.min"
    content = {
        "meta": {"dataset_meta": {"classes": ("cat", "dog")}, "epoch": 3},
        "state_dict": OrderedDict(weight=torch.ones(2)),
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
        "param_schedulers": [{"milestones": Counter([100])}],
    }
    torch.save(content, tmp_path / "epoch_3.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, home)
    file = read_checkpoint_file(tmp_path / "epoch_3.pth")
    assert torch.equal(file.tensors["weight"], torch.ones(2))
    assert file.metadata["meta"] == content["meta"]


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04broken"])
def test_other_files_are_errors(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt, or not a weights file"):
        read_checkpoint_file(tmp_path / name)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "pointer of Git LFS"),
        ("\n<!DOCTYPE html><html>Not found</html>", "it is a web page"),
        ("<?xml version='1.0'?><Error>AccessDenied</Error>", "it is XML, such as the answer of a server"),
    ],
)
def test_what_was_saved_in_place_of_weights_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name}: corrupt, or not a weights file \(.*{message}"):
        read_checkpoint_file(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"j\x05\x7d\x6b\x0a", "it begins neither as a zip file nor as a pickle"),  # KeyError: 174816517
        (b"epoch,loss\n1,0.5\n", "it begins neither as a zip file nor as a pickle"),
        (bytes(600), "it begins neither as a zip file nor as a pickle"),
        (b"\x80\x02h\x05.", "its pickle is not as torch.save writes it: KeyError"),
        (pickle.dumps({"weight": [1.0]}, 4), "its pickle is not as torch.save writes it: UnpicklingError"),
    ],
)
def test_what_a_file_is_not_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.pth: corrupt, or not a weights file \({message}"):
        read_checkpoint_file(tmp_path / "model.pth")


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


def test_an_exported_model_of_openvino_has_its_weights_beside_it() -> None:
    assert model_files(Path("a.xml")) == [Path("a.xml"), Path("a.bin")]
    assert model_files(Path("a.onnx")) == [Path("a.onnx")]
