from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from querybox.errors import CheckpointError, DiskFullError
from querybox.files import flush
from querybox.training import RunSettings, train
from querybox.training.checkpoint import Progress, RunCheckpoint
from querybox.training.start import build_detector


def trained_model() -> tuple[nn.Module, torch.optim.AdamW]:
    """Return a model after three updates; its first layer is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def new_model() -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(requires_grad=False)
    return model, torch.optim.AdamW(model[1].parameters(), lr=0.1)


PROGRESS = Progress(
    step=3,
    epoch=1,
    epoch_steps=1,
    epoch_sums={"loss": 0.1},
    seconds=1.5,
    best=0.25,
    best_step=2,
    rows=[{"epoch": "1", "loss": "0.5"}],
)
SETTINGS = {"recipe": "detr_r50", "train.lr": 1e-4, "train.freeze": ["backbone"]}


def state(model: nn.Module, optimizer: torch.optim.AdamW, progress: Progress) -> RunCheckpoint:
    return RunCheckpoint.of(
        progress, model, optimizer, average=model, scaler={"scale": 2.0}, settings=SETTINGS
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, optimizer = trained_model()
    path = tmp_path / "checkpoint.safetensors"
    state(model, optimizer, PROGRESS).write(path)
    return path


def test_tensors_are_copied_only_if_they_share_memory() -> None:
    model, optimizer = trained_model()
    places = {tensor.data_ptr() for tensor in model.state_dict().values()}

    def copied(average: nn.Module | None) -> list[str]:
        of_run = RunCheckpoint.of(PROGRESS, model, optimizer, average=average, scaler=None, settings=SETTINGS)
        models = {name: each for name, each in of_run.tensors.items() if not name.startswith("optimizer")}
        return [name for name, tensor in models.items() if tensor.data_ptr() not in places]

    assert copied(average=None) == []
    assert len(copied(average=model)) == 2 * len(places)


def test_everything_comes_back_and_the_next_update_is_the_same(path: Path) -> None:
    model, optimizer = trained_model()
    other, other_optimizer = new_model()
    average = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    checkpoint = RunCheckpoint.read(path)
    checkpoint.restore(other, other_optimizer, average=average)
    assert checkpoint.progress == PROGRESS
    assert checkpoint.scaler == {"scale": 2.0}
    assert checkpoint.settings == SETTINGS
    torch.testing.assert_close(average.state_dict(), model.state_dict(), rtol=0, atol=0)
    x = torch.randn(5, 4)
    for each, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        each(x).square().sum().backward()
        its_optimizer.step()
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_order_of_memory_does_not_matter(tmp_path: Path) -> None:
    """Files hold tensors in plain order, convolutions are trained channels last, and fused AdamW looks at memory."""
    torch.manual_seed(0)
    models = [nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1, fused=True) for model in models]
    x = torch.randn(2, 3, 8, 8)

    def update(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    update(models[0], optimizers[0])
    path = tmp_path / "c.safetensors"
    state(models[0], optimizers[0], Progress()).write(path)
    RunCheckpoint.read(path).restore(models[1], optimizers[1], average=None)
    for model, optimizer in zip(models, optimizers, strict=True):
        update(model, optimizer)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_a_run_that_made_no_update_yet_can_be_saved(tmp_path: Path) -> None:
    state(*new_model(), Progress()).write(tmp_path / "c.safetensors")
    checkpoint = RunCheckpoint.read(tmp_path / "c.safetensors")
    checkpoint.restore(*new_model(), average=None)
    assert checkpoint.progress == Progress()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"c\.safetensors: no such weights file"):
        RunCheckpoint.read(tmp_path / "c.safetensors")


def test_a_file_truncated_anywhere_is_corrupt(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="corrupt"):
            RunCheckpoint.read(path)


def test_a_flipped_bit_is_found_or_of_no_account(path: Path) -> None:
    """Of no account: spaces that fill the header up, and escapes in JSON."""
    whole, found = path.read_bytes(), 0
    expected = RunCheckpoint.read(path)
    for place in random.Random(0).sample(range(8 * len(whole)), 400):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            read = RunCheckpoint.read(path)
        except CheckpointError as error:
            assert "corrupt" in str(error)  # noqa: PT017 - not each of them is an error
            found += 1
        else:
            assert (read.progress, read.scaler, read.settings) == (
                expected.progress,
                expected.scaler,
                expected.settings,
            )
            torch.testing.assert_close(read.tensors, expected.tensors, rtol=0, atol=0)
    assert found > 390


def test_only_a_version_number_is_of_a_newer_querybox(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "c.safetensors", {"format": "querybox-run,1"})
    with pytest.raises(CheckpointError, match="got querybox-run,1: another kind of file, or corrupt"):
        RunCheckpoint.read(tmp_path / "c.safetensors")


def test_another_file_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="expected a run's checkpoint"):
        RunCheckpoint.read(tmp_path / "c.safetensors")


def test_another_model_is_told_and_left_as_it_was(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        RunCheckpoint.read(path).restore(model, torch.optim.AdamW(model.parameters()), average=None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_the_older_file_and_says_what_is_needed(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = path.read_bytes()

    def half_written(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise SafetensorError(
            f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
        )

    monkeypatch.setattr("querybox.checkpoints.files.save_file", half_written)
    with pytest.raises(
        DiskFullError, match=r"checkpoint\.safetensors: .* MB are needed, .* is unchanged\. Free some space"
    ):
        state(*trained_model(), Progress()).write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_another_error_of_the_disk_stays_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: Input/output error (os error 5)")

    monkeypatch.setattr("querybox.checkpoints.files.save_file", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        state(*trained_model(), Progress()).write(path)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, None])
def test_what_cannot_be_read_back_does_not_replace_the_older_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    """The disk takes what it is given, and keeps something else."""
    before = path.read_bytes()

    def lose(file: Path) -> None:
        flush(file)
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content if damage is None else damage)

    monkeypatch.setattr("querybox.checkpoints.native.flush", lose)
    with pytest.raises(CheckpointError, match="what was read back is not what was written"):
        state(*trained_model(), Progress()).write(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_saved_is_not_trained(
    run_settings: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*arguments: Any) -> Any:
        detector: Any = build_detector(*arguments)
        detector.decoder.box_head.append(nn.Identity())
        return detector

    monkeypatch.setattr("querybox.training.run.build_detector", changed)
    with pytest.raises(
        CheckpointError, match=r"last\.safetensors: not written, .*_head\.5 is Identity, expected none"
    ):
        train(run_settings())
    assert not (run_settings().folder / "run.yaml").exists()
