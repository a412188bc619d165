"""Runs on shards are those on the same images as files, also when they are resumed within an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from crashes import Crash, crash_in, same
from dataset_writers import write_json
from shards import write_images_and_boxes, write_shards

from querybox.data import read_dataset
from querybox.data.shards import ShardImage
from querybox.errors import DataError
from querybox.training import RunSettings, loop, shuffling, train
from querybox.training.loop import Trainer
from querybox.training.shuffling import with_row_groups

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture
def shards(boxes_json: Path, tmp_path: Path) -> Path:
    return write_shards(read_dataset(boxes_json), tmp_path / "shards", 2)


@pytest.fixture
def parquet(boxes_json: Path, tmp_path: Path) -> Path:
    """A file that names Parquet files to be read where they are."""
    write_images_and_boxes(read_dataset(boxes_json), tmp_path / "parquet", 4, rows_a_group=2)
    return write_json(tmp_path / "parquet" / "boxes.yaml", {"train": "*.parquet"})


def test_a_run_on_shards_is_that_on_files(
    run_settings: MakeSettings, boxes_json: Path, shards: Path, parquet: Path
) -> None:
    runs = [
        train(run_settings(name, epochs=1, data={"train": str(data), "val": str(data)})).run_dir
        for name, data in (("of files", boxes_json), ("of tars", shards), ("of Parquet files", parquet))
    ]
    for run in runs[1:]:
        same(run, runs[0], "checkpoint", "last", "best")
        assert (run / "report.html").is_file()


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_run_on_shards_is_resumed_within_an_epoch(
    run_settings: MakeSettings, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": str(request.getfixturevalue(kind)), "shuffle_shards": 2, "mosaic": 0.5}
    whole = train(run_settings("whole", epochs=2, batch_size=2, data=data)).run_dir
    settings = run_settings("parts", epochs=2, batch_size=2, data=data)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "MAX_CHECKPOINT_SECONDS", 0.0)
        crash_in(patch, Trainer, "update", 7)  # of 8
        with pytest.raises(Crash):
            train(settings)
    parts = train(settings, resume=True).run_dir
    same(parts, whole, "checkpoint", "last")


def test_row_groups_that_are_too_large_to_be_held_together_are_shuffled_a_few_at_a_time(
    run_settings: MakeSettings, parquet: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run keeps their number, which is written to its settings."""
    data = read_dataset(parquet)
    settings = run_settings(data={"train": str(parquet)})
    assert with_row_groups(settings, data) == (settings, "")
    assert with_row_groups(settings, read_dataset(shards)) == (settings, "")
    sizes = [image.file.size for image in data.images if isinstance(image.file, ShardImage)]
    largest = max(sum(sizes[start : start + 2]) for start in range(0, 8, 2))
    monkeypatch.setattr(shuffling, "HELD", largest * 2)
    chosen, note = with_row_groups(settings, data)
    assert chosen.data.shuffle_shards == 1
    assert note.endswith("the images of 1 row group are shuffled together (data.shuffle_shards=1)")
    assert with_row_groups(chosen, data) == (chosen, "")
    many = run_settings(data={"train": str(parquet), "shuffle_shards": 4})
    assert with_row_groups(many, data)[0] == many
    assert "data.shuffle_shards=4 row groups are read several times" in with_row_groups(many, data)[1]
    run = train(run_settings(epochs=1, data={"train": str(parquet)})).run_dir
    assert yaml.safe_load((run / "run.yaml").read_text())["data"]["shuffle_shards"] == 1
    monkeypatch.setattr(shuffling, "HELD", 1 << 30)
    assert train(run_settings(epochs=2, data={"train": str(parquet)}), resume=True).run_dir == run


def test_shards_that_changed_are_found_when_a_run_is_resumed(
    run_settings: MakeSettings, boxes_json: Path, shards: Path
) -> None:
    settings = run_settings(epochs=1, data={"train": str(shards)})
    train(settings)
    (shards / "train-003.tar").rename(shards / "train-0.tar")
    longer = settings.replace(train=settings.train.replace(epochs=2).model_dump(exclude_unset=True))
    with pytest.raises(DataError, match="its images or their objects are different"):
        train(longer, resume=True)
