"""A small corpus of malicious files: none of them executes anything. `torture.malice` reads it at every entrance."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from malicious_files import (
    CANARY,
    CODE,
    FORMATS,
    OBJECTS,
    PLACES,
    as_legacy,
    as_zip,
    good,
    harm,
)

from querybox.checkpoints.files import read_checkpoint_file
from querybox.errors import CheckpointError


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
        CheckpointError, match=r"model\.pth: refused: it contains 'posix\.system'.*state dict alone"
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
    with pytest.raises(CheckpointError, match=r"legacy \.tar format") as caught:
        read_checkpoint_file(path)
    assert "weights_only` set to `False`" not in str(caught.value)


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
        CheckpointError, match="expected only names and dense tensors, got something else in weight"
    ):
        read_checkpoint_file(tmp_path / "model.pth")


@pytest.mark.parametrize("shard", ["../elsewhere.bin", *PLACES])
def test_an_index_leads_to_files_beside_it_alone(shard: object, tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "elsewhere.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))
    with pytest.raises(CheckpointError, match=r"corrupt index|absent\.bin: no such weights file"):
        read_checkpoint_file(folder)


def test_weights_of_an_openvino_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(64))
    (tmp_path / "x.xml").write_text("<net/>")
    with pytest.raises(
        CheckpointError, match=r"x\.bin: the weights of an OpenVINO model; open .*x\.xml instead"
    ):
        read_checkpoint_file(tmp_path / "x.bin")
