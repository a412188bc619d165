from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from querybox.errors import CheckpointError
from querybox.training.checkpoint import Progress, load_checkpoint, save_checkpoint


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


PROGRESS = Progress(step=3, epoch=1, epoch_steps=1, epoch_sums={"loss": 0.1}, seconds=1.5, best=0.25)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model, optimizer = trained_model()
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, PROGRESS, model, optimizer, average=model, scaler={"scale": 2.0})
    return path


def test_everything_comes_back_and_the_next_update_is_the_same(path: Path) -> None:
    model, optimizer = trained_model()
    other, other_optimizer = new_model()
    average = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    progress, scaler = load_checkpoint(path, other, other_optimizer, average=average)
    assert progress == PROGRESS
    assert scaler == {"scale": 2.0}
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
    save_checkpoint(path, Progress(), models[0], optimizers[0], average=None, scaler=None)
    load_checkpoint(path, models[1], optimizers[1], average=None)
    for model, optimizer in zip(models, optimizers, strict=True):
        update(model, optimizer)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)


def test_a_run_that_made_no_update_yet_can_be_saved(tmp_path: Path) -> None:
    model, optimizer = new_model()
    save_checkpoint(tmp_path / "c.safetensors", Progress(), model, optimizer, average=None, scaler=None)
    assert load_checkpoint(tmp_path / "c.safetensors", *new_model(), average=None) == (Progress(), None)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint to resume"):
        load_checkpoint(tmp_path / "c.safetensors", *new_model(), average=None)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_corrupt(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(path, *new_model(), average=None)


def test_a_flipped_bit_is_corrupt(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[-7] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(path, *new_model(), average=None)


def test_another_file_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="expected a run's checkpoint"):
        load_checkpoint(tmp_path / "c.safetensors", *new_model(), average=None)


def test_another_model_is_told_and_left_as_it_was(path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    with pytest.raises(CheckpointError, match="does not fit this run's model"):
        load_checkpoint(path, model, torch.optim.AdamW(model.parameters()), average=None)


def test_a_save_that_fails_leaves_the_older_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def half_written(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("querybox.weights.querybox.save_file", half_written)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, Progress(), *trained_model(), average=None, scaler=None)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
