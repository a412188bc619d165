"""A small corpus of malicious files: none of them executes anything, wherever it is read."""

from __future__ import annotations

import argparse
import collections
import ctypes
import io
import json
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from querybox import Detector
from querybox.checkpoints.backbone import load_backbone
from querybox.checkpoints.files import read_checkpoint_file
from querybox.cli import main
from querybox.errors import CheckpointError
from querybox.modules.backbone import Backbone
from querybox.training.checkpoint import Checkpoint

CANARY = "executed"
"""A file of this name in the working folder tells that something ran."""
CODE = f"__import__('pathlib').Path('{CANARY}').touch()"


class Call:
    """Pickled, it is a call that unpickling makes."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """So that what a call returns can be called."""


def harm() -> Call:
    return Call(os.system, f"touch {CANARY}")


def with_attributes(value: Any, **attributes: object) -> Any:
    vars(value).update(attributes)
    return value


def nested_pickle() -> Call:
    """Bytes that torch unpickles without any care when it is asked to."""
    content = io.BytesIO()
    torch.save(harm(), content)
    return Call(torch.storage._load_from_bytes, content.getvalue())


def good() -> dict[str, Any]:
    return {"weight": torch.ones(3)}


OBJECTS: dict[str, Callable[[], Any]] = {
    "system": harm,
    "eval": lambda: Call(eval, CODE),
    "exec": lambda: Call(exec, CODE),
    "open": lambda: Call(open, CANARY, "w"),
    "import": lambda: Call(__import__, "antigravity"),
    "subprocess": lambda: Call(subprocess.check_output, ["touch", CANARY]),
    "mkdir": lambda: Call(Path.mkdir, Path(CANARY)),
    "a tensor among others": lambda: {**good(), "bias": harm()},
    "a name": lambda: {**good(), (1, harm()): torch.ones(1)},
    "model": lambda: {"model": {**good(), "bias": harm()}},
    "state_dict": lambda: {"state_dict": harm()},
    "optimizer": lambda: {"model": good(), "optimizer": {"state": [harm()]}},
    "options": lambda: {"model": good(), "args": argparse.Namespace(lr=harm())},
    "meta": lambda: {"state_dict": good(), "meta": {"CLASSES": harm()}},
    "attribute of an ordered dict": lambda: with_attributes(
        collections.OrderedDict(good()), _metadata=harm()
    ),
    "attribute of a parameter": lambda: with_attributes(nn.Parameter(torch.ones(2)), extra=harm()),
    "hooks of a tensor": lambda: with_attributes(torch.ones(2), _backward_hooks=harm()),
    "torch.load in a pickle": nested_pickle,
    "torch.load": lambda: Call(torch.load, "inner.pth", None, None),
    "torch.hub": lambda: Call(torch.hub.load, ".", "run", "local"),
    "a library": lambda: Call(ctypes.CDLL, "inner.so"),
    "type rebuilt by any function": lambda: Call(
        torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (f"touch {CANARY}",), {}
    ),
    "methods through getattr": lambda: Call(Call(getattr, Path, "touch"), Path(CANARY)),
    "getattr of an allowed name": lambda: {
        "model": good(),
        "args": Call(Call(getattr, argparse.Namespace, "__init__"), CANARY),
    },
    "a module": lambda: nn.Linear(2, 2),
    "not data": lambda: good,
}
"""What a file may hold, freshly made."""


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_zip_of_protocol_4(content: Any, path: Path) -> None:
    torch.save(content, path, pickle_protocol=4)


def as_legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


FORMATS = [as_zip, as_zip_of_protocol_4, as_legacy, as_pickle]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hubconf.py").write_text(f"{CODE}\ndef run(): pass\n")
    torch.save(harm(), "inner.pth")
    yield
    assert not Path(CANARY).exists(), "a file executed code"


def read_if_harmless(path: Path) -> None:
    """Some files hold harm where nobody looks: they may be read, or be refused as every unreadable file is."""
    try:
        tensors = read_checkpoint_file(path).tensors
    except CheckpointError as error:
        message = str(error)
        assert str(path) in message
        assert "\n" not in message
    else:
        assert all(type(tensor) is torch.Tensor for tensor in tensors.values())


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("name", OBJECTS)
def test_no_object_is_executed(name: str, write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    try:
        write(OBJECTS[name](), path)
    except (pickle.PicklingError, TypeError, AttributeError):
        pytest.skip("this format cannot hold " + name)
    read_if_harmless(path)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
@pytest.mark.parametrize("name", ["system", "eval", "model", "options", "meta", "methods through getattr"])
def test_the_corpus_does_harm_where_pickles_are_trusted(
    name: str, write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    write(OBJECTS[name](), tmp_path / "model.pth")
    torch.load(tmp_path / "model.pth", weights_only=False)
    Path(CANARY).unlink()


@pytest.mark.parametrize("name", ["system", "optimizer", "options", "meta"])
def test_the_refusal_names_the_culprit_and_the_cure(name: str) -> None:
    as_zip(OBJECTS[name](), Path("model.pth"))
    with pytest.raises(
        CheckpointError, match=r"model\.pth: refused: it holds 'posix\.system'.*state dict alone"
    ):
        read_checkpoint_file("model.pth")


HARMFUL_PICKLE = b"cposix\nsystem\n(Vtouch " + CANARY.encode() + b"\ntR."


@pytest.mark.parametrize(
    "content",
    [
        HARMFUL_PICKLE,
        b"(Vtouch executed\nios\nsystem\n.",  # INST
        b"(cposix\nsystem\nVtouch executed\no.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0etouch executed\x85R.",  # STACK_GLOBAL
        b"\x80\x02cbuiltins\ngetattr\ncargparse\nNamespace\nX\x08\x00\x00\x00__init__\x86R(dtR.",
        b"\x80\x02(X\x06\x00\x00\x00moduleccollections\nOrderedDict\nX\x01\x00\x00\x00aX\x01\x00\x00\x00btQ.",
        b"\x80\x02" + b"(" * 10_000 + b"l" * 10_000 + b".",
        b"\x80\x02]" + b"]a" * 10 + b".",
        # An ordered dict with a value, whose methods `items` and `keys` are numbers.
        b"\x80\x02ccollections\nOrderedDict\n)RX\x01\x00\x00\x00wK\x03s"
        b"}X\x05\x00\x00\x00itemsK\x03sX\x04\x00\x00\x00keysK\x03sb.",
        b"\x82\x01.",  # an extension that copyreg would look up
    ],
)
@pytest.mark.parametrize("kind", ["plain", "legacy", "zip", "torchscript"])
def test_no_handwritten_pickle_is_executed(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    if kind == "plain":
        path.write_bytes(content)
    elif kind == "legacy":
        headers = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(each, protocol=2) for each in headers) + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
            if kind == "torchscript":
                archive.writestr("archive/constants.pkl", HARMFUL_PICKLE)
                archive.writestr("archive/code/__torch__.py", CODE)
    with pytest.raises(CheckpointError, match=r"corrupt|refused|expected a mapping|something else"):
        read_checkpoint_file(path)


def test_the_tar_format_of_old_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", f"../{CANARY}"):
            member = tarfile.TarInfo(name)
            member.size = len(HARMFUL_PICKLE)
            archive.addfile(member, io.BytesIO(HARMFUL_PICKLE))
    with pytest.raises(CheckpointError, match=r"legacy \.tar format"):
        read_checkpoint_file(path)


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    """A thousand times its size could come out of it."""
    path = tmp_path / "model.pth"
    torch.save(good(), tmp_path / "whole.pth")
    with (
        zipfile.ZipFile(tmp_path / "whole.pth") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        read_checkpoint_file(path)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_a_tensor_larger_than_its_memory_is_refused(
    write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    write({"weight": torch.ones(1).expand(10**12)}, tmp_path / "model.pth")
    with pytest.raises(
        CheckpointError, match="expected names and dense tensors alone, got something else in weight"
    ):
        read_checkpoint_file(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "shard", ["../elsewhere.bin", "/etc/passwd", "..", "", "model.safetensors.index.json", 3, "absent.bin"]
)
def test_an_index_leads_to_files_beside_it_alone(shard: object, tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "elsewhere.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    with pytest.raises(CheckpointError, match=r"corrupt index|absent\.bin: no such weights file"):
        read_checkpoint_file(folder)


ENTRANCES: dict[str, Callable[[Path], object]] = {
    "Detector.load": Detector.load,
    "backbone weights": lambda path: load_backbone(
        Backbone("test_resnet", strides=(32,)), "test_resnet", str(path)
    ),
    "checkpoint of a run": Checkpoint.read,
    **{
        command: lambda path, command=command: main(
            [command, str(path), *(["."] if command != "info" else [])]
        )  # type: ignore[misc]
        for command in ("info", "predict", "evaluate")
    },
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "bin", "pt"])
@pytest.mark.parametrize("name", ["system", "model", "optimizer", "options"])
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_is_guarded(entrance: str, name: str, suffix: str) -> None:
    path = Path(f"model.{suffix}")
    as_zip(OBJECTS[name](), path)
    try:
        status = ENTRANCES[entrance](path)
    except CheckpointError:
        return
    assert status == 2
