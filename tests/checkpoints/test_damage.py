"""Truncated files and flipped bits: a file of any kind is reported as corrupt, or gives the very same tensors."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from malicious_files import HEADERS
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from querybox.checkpoints import native
from querybox.checkpoints.files import read_checkpoint_file
from querybox.errors import CheckpointError

TRIES = 200
State = dict[str, Tensor]


def small_state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        "backbone.weight": torch.randn(5, 3, generator=generator),
        "head.weight": torch.randn(7, generator=generator).half(),
        "steps": torch.tensor(1234567),
    }


def write_zip(folder: Path) -> Path:
    torch.save(
        {"model": small_state(), "args": argparse.Namespace(lr=1e-4), "epoch": 7}, folder / "model.pth"
    )
    return folder / "model.pth"


def write_legacy(folder: Path) -> Path:
    torch.save({"state_dict": small_state()}, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def write_safetensors(folder: Path) -> Path:
    save_file(small_state(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def write_querybox(folder: Path) -> Path:
    path = folder / "model.safetensors"
    native.write(path, small_state(), {"categories": ["cat", "dog"], "recipe": {"queries": 100}})
    return path


def named_by_digest(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Publish a file as torch.hub and MMDetection do."""

    def publish(folder: Path) -> Path:
        path = write(folder)
        return path.rename(path.with_stem(f"{path.stem}-{digest(path)[:8]}"))

    return publish


def with_digest_beside(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def publish(folder: Path) -> Path:
        path = write(folder)
        path.with_name(f"{path.name}.sha256").write_text(f"{digest(path)}  {path.name}\n")
        return path

    return publish


def in_the_cache_of_the_hub(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def publish(folder: Path) -> Path:
        path = write(folder)
        blob = path.rename(folder / digest(path))
        path.symlink_to(blob)
        return path

    return publish


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_querybox(path: Path) -> State:
    tensors, card = native.read(path)
    assert card == {"categories": ["cat", "dog"], "recipe": {"queries": 100}}
    return tensors


def read_public(path: Path) -> State:
    return read_checkpoint_file(path).tensors


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], State]]] = {
    "zip": (write_zip, read_public),
    "older pickle named by its digest": (named_by_digest(write_legacy), read_public),
    "older pickle with a digest beside": (with_digest_beside(write_legacy), read_public),
    "safetensors named by its digest": (named_by_digest(write_safetensors), read_public),
    "safetensors with a digest beside": (with_digest_beside(write_safetensors), read_public),
    "safetensors in the hub's cache": (in_the_cache_of_the_hub(write_safetensors), read_public),
    "our own": (write_querybox, read_querybox),
}
WITHOUT_A_DIGEST = {
    "older pickle": (write_legacy, read_public),
    "safetensors": (write_safetensors, read_public),
}
"""These have no checksum: a flipped bit of a number or a name cannot be seen. `torture.fuzz` reads many such files."""


def check(path: Path, read: Callable[[Path], State], damaged: Iterator[bytes]) -> None:
    """Read each of the damaged contents."""
    read(path)  # whole
    whole, errors = path.read_bytes(), 0
    for content in damaged:
        path.write_bytes(content)
        try:
            tensors = read(path)
        except CheckpointError as error:
            message = str(error)
            assert str(path) in message
            assert "corrupt" in message
            errors += 1
        else:
            assert_close(tensors, small_state(), rtol=0, atol=0)
    path.write_bytes(whole)
    assert errors


@pytest.mark.parametrize(
    ("write", "read"), [*KINDS.values(), *WITHOUT_A_DIGEST.values()], ids=[*KINDS, *WITHOUT_A_DIGEST]
)
def test_truncated_files_are_corrupt(
    write: Callable[[Path], Path], read: Callable[[Path], State], tmp_path: Path
) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    lengths = random.Random(1).sample(range(len(whole)), TRIES)
    check(path, read, (whole[:length] for length in lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_or_of_no_account(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    check(path, read, flipped(path.read_bytes(), seed=2))


def flipped(whole: bytes, seed: int) -> Iterator[bytes]:
    """Yield `whole` with one bit flipped, in `TRIES` places that any seed chooses anew."""
    for place in random.Random(seed).choices(range(8 * len(whole)), k=TRIES):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = write_zip(tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_close(read_public(path), small_state(), rtol=0, atol=0)


def test_a_date_in_the_name_is_no_digest(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    read_public(path.rename(tmp_path / "model-20201130.pth"))


def test_a_digest_that_is_none_says_so(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    (tmp_path / "model.pth.sha256").write_text("<html>not found</html>")
    with pytest.raises(CheckpointError, match=r"model\.pth\.sha256: corrupt file: expected a SHA-256"):
        read_public(path)


def test_another_files_digest_says_how_to_go_on(tmp_path: Path) -> None:
    path = write_zip(tmp_path).rename(tmp_path / "model-0676ba61.pth")
    with pytest.raises(
        CheckpointError, match=r"its name says that its SHA-256 begins with 0676ba61, .* rename it"
    ):
        read_public(path)


@pytest.mark.parametrize("content", HEADERS)
def test_a_header_that_lies_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt"):
        read_public(tmp_path / "model.safetensors")


@pytest.mark.parametrize("place", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"weight_map": 3}', b"[" * 100_000])
def test_broken_json_is_told(place: str, content: bytes, tmp_path: Path) -> None:
    torch.save(small_state(), tmp_path / "pytorch_model.bin")
    (tmp_path / place).write_bytes(content)
    if place == "config.json" and content.startswith(b"{") and len(content) > 1:
        assert read_checkpoint_file(tmp_path).metadata["config"] == json.loads(content)
        return
    with pytest.raises(CheckpointError, match=place):
        read_checkpoint_file(tmp_path)
