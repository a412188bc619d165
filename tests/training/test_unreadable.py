"""Images that are deleted or broken while a run is under way."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_both

from querybox.diagnosis.record import read_record
from querybox.errors import TrainingError
from querybox.training import RunSettings, train
from querybox.training.loop import Trainer
from querybox.training.update import Update

MakeSettings = Callable[..., RunSettings]


@pytest.fixture
def own_boxes(boxes_json: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be damaged."""
    return Path(shutil.copytree(boxes_json.parent, tmp_path / "boxes")) / boxes_json.name


def damage_after(monkeypatch: pytest.MonkeyPatch, steps: int, *damaged: Path) -> list[Update]:
    """Delete or empty files after so many updates; return the updates that are made."""
    update, made = Trainer.update, []

    def updating(self: Trainer, *arguments: Any) -> Update:
        made.append(update(self, *arguments))
        if len(made) == steps:
            for number, path in enumerate(damaged):
                path.unlink() if number % 2 else path.write_bytes(b"")
        return made[-1]

    monkeypatch.setattr(Trainer, "update", updating)
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_recorded_and_weigh_nothing(
    run_settings: MakeSettings,
    own_boxes: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    made = damage_after(monkeypatch, 2, own_boxes.parent / "1.png", own_boxes.parent / "5.png")
    data = {"train": str(own_boxes), "max_corrupt": 0.5, "workers": workers}
    settings = run_settings(data=data, epochs=4, batch_size=4)
    with caplog.at_level(logging.WARNING, "querybox"):
        folder = train(settings).run_dir
    lost = read_record(folder).lost
    assert sorted(lost) == [1, 5]
    assert "1.png: cannot be read as an image" in lost[1]
    assert "5.png: no such image file" in lost[5]
    assert len([message for message in caplog.messages if "is excluded from the loss" in message]) == 2
    assert sum(update.unreadable for update in made) > 2
    assert all(update.images + update.unreadable == 4 for update in made)


def test_an_update_without_any_image_changes_nothing(
    run_settings: MakeSettings, own_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [own_boxes.parent / f"{number}.png" for number in range(1, 9)]
    seen = []
    count = Trainer.count

    def counting(self: Trainer, update: Update) -> None:
        seen.append({name: tensor.clone() for name, tensor in self.detector.state_dict().items()})
        count(self, update)

    monkeypatch.setattr(Trainer, "count", counting)
    damage_after(monkeypatch, 1, *files)
    train(run_settings(data={"train": str(own_boxes), "max_corrupt": 1.0}, epochs=2, batch_size=4))
    assert len(seen) == 4
    for later in seen[1:]:
        torch.testing.assert_close(later, seen[0], rtol=0, atol=0)


def test_too_many_end_the_run_before_an_update(
    run_settings: MakeSettings, own_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage_after(monkeypatch, 2, own_boxes.parent / "1.png")
    settings = run_settings(data={"train": str(own_boxes)}, epochs=2, batch_size=4)
    with pytest.raises(
        TrainingError, match=r"1 of 8 training images have become unreadable .* data\.max_corrupt = 0\.05"
    ):
        train(settings)
    assert read_record(settings.folder).failed


PROGRAM = """
import json, sys
from pathlib import Path
from querybox.training import RunSettings, train
from querybox.training.loop import Trainer
with open(sys.argv[1]) as file:
    settings = RunSettings.parse(json.load(file))
update = Trainer.update
def updating(self, *arguments):
    done = update(self, *arguments)
    if self.progress.step == 0 and self.accelerator.is_main_process:
        for number in (2, 3, 5, 6, 8):
            Path(settings.data.train).with_name(f"{number}.png").unlink()
    self.accelerator.wait_for_everyone()
    return done
Trainer.update = updating
train(settings)
"""


def test_processes_stay_aligned_where_one_loses_its_whole_share(
    run_settings: MakeSettings, own_boxes: Path, tmp_path: Path
) -> None:
    data = {"train": str(own_boxes), "max_corrupt": 1.0}
    settings = run_settings("two", data=data, epochs=3, batch_size=2).replace(recipe="dino_small")
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    run_both(PROGRAM, tmp_path, "settings.json")
    assert sorted(read_record(tmp_path / "two").lost) == [2, 3, 5, 6, 8]
    weights = load_file(tmp_path / "two" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
