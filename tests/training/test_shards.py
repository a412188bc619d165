"""Runs on shards are those on the same images as files, also when they are resumed within an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import Crash, crash_in, same
from shards import write_shards

from querybox.data import read_dataset
from querybox.errors import DataError
from querybox.training import RunSettings, loop, train
from querybox.training.loop import Trainer

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture
def shards(boxes_json: Path, tmp_path: Path) -> Path:
    return write_shards(read_dataset(boxes_json), tmp_path / "shards", 2)


def test_a_run_on_shards_is_that_on_files(run_settings: MakeSettings, boxes_json: Path, shards: Path) -> None:
    runs = [
        train(run_settings(name, epochs=1, data={"train": str(data), "val": str(data)})).run_dir
        for name, data in (("of files", boxes_json), ("of shards", shards))
    ]
    same(runs[1], runs[0], "checkpoint", "last", "best")
    assert (runs[1] / "report.html").is_file()


def test_a_run_on_shards_is_resumed_within_an_epoch(
    run_settings: MakeSettings, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_CHECKPOINT_SECONDS", 0.0)
    data = {"train": str(shards), "shuffle_shards": 2, "mosaic": 0.5}
    whole = train(run_settings("whole", epochs=2, batch_size=2, data=data)).run_dir
    settings = run_settings("parts", epochs=2, batch_size=2, data=data)
    with monkeypatch.context() as patch:
        crash_in(patch, Trainer, "update", 7)  # of 8
        with pytest.raises(Crash):
            train(settings)
    parts = train(settings, resume=True).run_dir
    same(parts, whole, "checkpoint", "last")


def test_shards_that_changed_are_found_when_a_run_is_resumed(
    run_settings: MakeSettings, boxes_json: Path, shards: Path
) -> None:
    settings = run_settings(epochs=1, data={"train": str(shards)})
    train(settings)
    (shards / "train-003.tar").rename(shards / "train-0.tar")
    longer = settings.replace(train=settings.train.replace(epochs=2).model_dump(exclude_unset=True))
    with pytest.raises(DataError, match="its images or their objects are different"):
        train(longer, resume=True)
