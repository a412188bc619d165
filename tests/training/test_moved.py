"""Runs whose folder or data is in another place, and what more epochs do to their schedule."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from querybox.checkpoints import native
from querybox.errors import ConfigError, DataError
from querybox.runfile import read_run_file
from querybox.training import RunSettings, train
from querybox.training.checkpoint import RunCheckpoint
from querybox.training.loop import Trainer
from querybox.training.start import locate

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a validation set, but without the time that it takes to evaluate on it."""
    monkeypatch.setattr(Trainer, "measure", lambda *_: {})
    monkeypatch.setattr("querybox.training.run.write_report", lambda *_: "")


@pytest.fixture
def own_boxes(boxes_json: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be moved."""
    return Path(shutil.copytree(boxes_json.parent, tmp_path / "boxes")) / boxes_json.name


def epochs_of(folder: Path) -> int:
    return RunCheckpoint.read(folder / "checkpoint.safetensors").progress.epoch


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rates(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row["lr"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("early", [False, True])
def test_a_copy_of_a_run_goes_on_by_itself(trained: Path, tmp_path: Path, early: bool) -> None:
    original = trained
    assert "\noutput: .\n" in (original / "run.yaml").read_text()
    if early:  # run files had the path of the folder
        text = (original / "run.yaml").read_text()
        (original / "run.yaml").write_text(text.replace("\noutput: .\n", f"\noutput: {original}\n"))
    copy = Path(shutil.copytree(original, tmp_path / "elsewhere" / "copy"))
    before = contents(original)
    assert train(copy / "run.yaml", resume=True, epochs=2).run_dir == copy
    assert (epochs_of(copy), contents(original)) == (2, before)

    moved = original.rename(tmp_path / "moved")
    assert train(moved / "run.yaml", resume=True, epochs=2).run_dir == moved
    assert epochs_of(moved) == 2
    assert not original.exists()


def test_a_run_file_is_repeated_elsewhere_and_never_over_its_run(trained: Path, tmp_path: Path) -> None:
    before = contents(trained)
    with pytest.raises(ConfigError, match="the run folder is not empty"):
        train(trained / "run.yaml")
    assert train(trained / "run.yaml", output=tmp_path / "again").run_dir == tmp_path / "again"
    assert contents(trained) == before


@pytest.mark.usefixtures("no_evaluation")
@pytest.mark.parametrize("val", ["held out", "own"])
def test_data_may_be_moved_while_a_run_waits(
    run_settings: MakeSettings, own_boxes: Path, tmp_path: Path, val: str
) -> None:
    data = {"train": str(own_boxes), "val": None if val == "held out" else str(own_boxes)}
    folder = train(run_settings(data=data, epochs=1)).run_dir
    fingerprints = json.loads((folder / "validation.json").read_text())
    moved = own_boxes.parent.rename(tmp_path / "archive") / own_boxes.name
    with pytest.raises(DataError, match=r"boxes\.json: no such file .* data\.train=PLACE"):
        train(folder / "run.yaml", resume=True)
    places: dict[str, Any] = {"data.train": moved} | ({} if val == "held out" else {"data.val": str(moved)})
    train(folder / "run.yaml", resume=True, epochs=2, **places)
    assert epochs_of(folder) == 2
    assert json.loads((folder / "validation.json").read_text()) == fingerprints
    assert read_run_file(folder / "run.yaml")["data"]["train"] == str(moved)
    train(folder / "run.yaml", resume=True, epochs=3)  # it knows the new place


@pytest.mark.usefixtures("no_evaluation")
def test_held_out_images_stay_the_same_in_a_folder_of_another_name(
    run_settings: MakeSettings, own_boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice of a new run depends on the name of the folder, here made to be another one."""
    data = {"train": str(own_boxes), "val": None}
    folder = train(run_settings(data=data, epochs=1)).run_dir
    ids = json.loads((folder / "validation.json").read_text())["val"]["fixed"]["held_out"]
    assert len(ids) == 2

    def other(*_: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr("querybox.training.data.hold_out", other)
    train(folder / "run.yaml", resume=True, epochs=2)


def test_what_changed_in_the_data_is_told(run_settings: MakeSettings, own_boxes: Path) -> None:
    folder = train(run_settings(data={"train": str(own_boxes)}, epochs=1)).run_dir
    content = json.loads(own_boxes.read_text())
    content["images"] = content["images"][:-1]
    content["annotations"] = content["annotations"][1:]
    own_boxes.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match="it had 8 images with 13 objects and has now 7 images with 12; restore it"
    ):
        train(folder / "run.yaml", resume=True)


@pytest.mark.usefixtures("no_evaluation")
@pytest.mark.parametrize(("before", "after"), [("none", "own"), ("own", "none")])
def test_validation_data_are_neither_added_nor_removed(
    run_settings: MakeSettings, own_boxes: Path, before: str, after: str
) -> None:
    values: dict[str, Any] = {"none": "none", "own": str(own_boxes)}
    folder = train(run_settings(data={"train": str(own_boxes), "val": values[before]}, epochs=1)).run_dir
    with pytest.raises(ConfigError, match=r"a resumed run cannot change 'data\.val'"):
        train(folder / "run.yaml", resume=True, epochs=2, **{"data.val": values[after]})


def test_a_decayed_learning_rate_stays_low_with_more_epochs(
    run_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(epochs=3, batch_size=8)
    folder = train(settings).run_dir
    assert rates(folder) == [1e-3, 1e-3, 1e-4]
    for epochs in (6, 9):  # from the settings of the first run, and from its run file
        train(settings if epochs == 6 else folder / "run.yaml", resume=True, epochs=epochs)
        assert rates(folder) == [1e-3, 1e-3, *[1e-4] * (epochs - 2)]
    assert "learning rate rises" not in capsys.readouterr().err


def test_a_milestone_that_lies_ahead_moves_with_the_epochs(run_settings: MakeSettings) -> None:
    folder = train(run_settings(epochs=3, max_time=1e-3)).run_dir
    train(folder / "run.yaml", resume=True, epochs=6, **{"train.max_time": None})
    assert rates(folder) == [1e-3, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4]


def test_a_run_that_the_time_has_ended_stays_as_it_is_without_more_time(
    run_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(epochs=3, max_time=1e-3)
    train(settings)
    folder = train(settings, resume=True).run_dir
    assert RunCheckpoint.read(folder / "checkpoint.safetensors").progress.step == 1
    assert "had ended (time): to continue it, resume with a larger train.max_time" in capsys.readouterr().err


def test_a_cosine_that_is_stretched_tells_both_rates(
    run_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(epochs=2, schedule="cosine", warmup_steps=1)
    folder = train(settings).run_dir
    train(settings, resume=True)  # nothing changes
    assert "learning rate" not in capsys.readouterr().err
    train(folder / "run.yaml", resume=True, epochs=4)
    last, rate = 1e-3 * 0.25, 1e-3 * 0.6112604669781572  # cos(pi 2/3), cos(pi 3/7)
    assert rates(folder)[1] == pytest.approx(last)
    assert f"the learning rate rises from {last:.2g} to {rate:.2g}, because the run" in (
        told := capsys.readouterr().err
    )
    assert "the augmentation changes" not in told


def test_the_rate_of_the_backbone_does_not_rise_where_it_alone_is_trained(
    run_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(epochs=1, milestones=(9,), freeze=("neck", "encoder", "queries", "decoder"))
    folder = train(settings).run_dir
    train(settings, resume=True, epochs=2)
    assert rates(folder) == [1e-5, 1e-5]
    assert "learning rate rises" not in capsys.readouterr().err


def test_augmentation_that_begins_again_with_more_epochs_is_told(
    run_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = run_settings(epochs=2, data={"photometric": 0.5, "strong_until": 0.9})
    train(settings)
    train(settings, resume=True, epochs=3)
    told = "the augmentation changes, because 67% of the run is done now, not 100% as when it stopped"
    assert told in capsys.readouterr().err


def test_an_early_checkpoint_without_settings_is_resumed(run_settings: MakeSettings, trained: Path) -> None:
    path = trained / "checkpoint.safetensors"
    dataclasses.replace(RunCheckpoint.read(path), settings={}).write(path)
    assert rates(train(run_settings(epochs=2), resume=True).run_dir) == [1e-3, 1e-4]


def test_a_resumed_run_needs_its_folder_and_its_data_alone(
    run_settings: MakeSettings, trained: Path, tmp_path: Path
) -> None:
    weights = Path(shutil.copy(trained / "last.safetensors", tmp_path / "downloaded.safetensors"))
    whole = train(run_settings("whole", epochs=1).replace(weights=str(weights))).run_dir
    parts = Path(shutil.copytree(whole, tmp_path / "parts"))
    train(whole / "run.yaml", resume=True, epochs=2)
    weights.unlink()
    train(parts / "run.yaml", resume=True, epochs=2)
    before, after = (
        RunCheckpoint.read(folder / "checkpoint.safetensors").tensors for folder in (whole, parts)
    )
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    before, after = (native.read(folder / "last.safetensors")[1] for folder in (whole, parts))
    assert after == before  # the card, which has the preprocessing


def test_a_tilde_is_the_home_directory(
    run_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    path = tmp_path / "settings" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("data: {train: ~/photos, val: none}\nweights: ~/w.pth\noutput: ~/runs/mine\n")
    settings = locate(RunSettings.parse(read_run_file(path)), resume=False)
    assert (settings.data.train, settings.data.val) == (str(tmp_path / "photos"), "none")
    assert (settings.weights, settings.folder) == (str(tmp_path / "w.pth"), tmp_path / "runs" / "mine")
