"""What a run does about its data before the first step, and when it goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from querybox.data.scan import examine_images
from querybox.errors import ConfigError, DataError
from querybox.runfile import read_overrides
from querybox.training import RunSettings, train
from querybox.training.data import read_splits

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture
def own_boxes(boxes_json: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset, to be damaged."""
    return Path(shutil.copytree(boxes_json.parent, tmp_path / "boxes")) / boxes_json.name


def test_what_cannot_be_read_is_left_out_once_and_for_all(
    run_settings: MakeSettings, own_boxes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = own_boxes.parent / "3.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:100])
    data = {"train": str(own_boxes), "val": str(own_boxes), "max_corrupt": 0.2}
    folder = train(run_settings(data=data, epochs=1)).run_dir
    found = json.loads((folder / "validation.json").read_text())
    for split in ("train", "val"):
        assert found[split]["fixed"]["left_out"] == [3]
        assert (found[split]["images"], found[split]["left_out"], found[split]["usable"]) == (7, 1, True)
    assert "before the run (train)" in (folder / "report.html").read_text()

    looked: list[Any] = []
    monkeypatch.setattr("querybox.training.data.examine_images", lambda *_: looked.append(_))
    broken.write_bytes(content)  # it is back, but the run has begun without it
    train(run_settings(data=data, epochs=2), resume=True)
    assert not looked
    assert json.loads((folder / "validation.json").read_text()) == found


@pytest.mark.usefixtures("trained")
def test_a_run_goes_on_though_an_image_is_gone(run_settings: MakeSettings, own_boxes: Path) -> None:
    data = {"train": str(own_boxes), "max_corrupt": 0.5}
    (own_boxes.parent / "5.png").unlink()
    folder = train(run_settings(data=data, epochs=2), resume=True).run_dir
    assert list(json.loads((folder / "record.json").read_text())["lost"]) == ["5"]


def rename(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "green"


def move(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"][0] += 1


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(
    ("spoil", "change"),
    [
        (rename, "classes were red, blue and are now green, blue"),
        (move, "images or their objects are different"),
    ],
)
def test_other_data_than_the_run_began_with_are_refused(
    run_settings: MakeSettings, own_boxes: Path, spoil: Callable[[dict[str, Any]], None], change: str
) -> None:
    content = json.loads(own_boxes.read_text())
    spoil(content)
    own_boxes.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{change}; .* --weights .*last\.safetensors"):
        train(run_settings(data={"train": str(own_boxes)}, epochs=2), resume=True)


def test_a_damaged_validation_is_told_and_a_lost_one_made_anew(
    run_settings: MakeSettings, trained: Path
) -> None:
    (trained / "validation.json").write_text("{}x")
    with pytest.raises(DataError, match=r"validation\.json: is corrupt"):
        train(run_settings(epochs=1), resume=True)
    (trained / "validation.json").unlink()
    train(run_settings(epochs=1), resume=True)
    assert (trained / "validation.json").is_file()


def test_too_many_are_refused_before_anything_is_written(run_settings: MakeSettings, own_boxes: Path) -> None:
    (own_boxes.parent / "5.png").unlink()
    settings = run_settings(data={"train": str(own_boxes)})
    with pytest.raises(DataError, match=r"1 of 8, more than data\.max_corrupt = 0\.05"):
        train(settings)
    assert not settings.folder.exists()
    assert examine_images(()) == []


def test_nothing_is_held_out_that_has_no_objects(run_settings: MakeSettings, own_boxes: Path) -> None:
    content = json.loads(own_boxes.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == first]
    own_boxes.write_text(json.dumps(content))
    settings = run_settings(data={"train": str(own_boxes), "val": None})
    read = read_splits(settings, resume=False)
    assert (len(read.training.images), read.validation, read.held_out) == (8, None, False)
    assert "NO VALIDATION" in (read.describe(settings) or "")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_image_names_may_be_of_another_encoding(run_settings: MakeSettings, own_boxes: Path) -> None:
    name = os.fsdecode(b"\xe4.png")
    (own_boxes.parent / "3.png").rename(own_boxes.parent / name)
    content = json.loads(own_boxes.read_text())
    content["images"][2]["file_name"] = name
    own_boxes.write_text(json.dumps(content))
    data = {"train": str(own_boxes), "val": None}
    folder = train(run_settings(data=data, epochs=1)).run_dir
    train(run_settings(data=data, epochs=2), resume=True)
    assert (folder / "report.html").is_file()


def test_paths_in_settings_are_utf8(run_settings: MakeSettings) -> None:
    with pytest.raises(
        ConfigError, match=r"setting 'data\.train' got '.*', which is not UTF-8; .* rename the file"
    ):
        run_settings(data={"train": "d\udcff"})
    assert read_overrides(["data.train=d\udcff"]) == {"data.train": "d\udcff"}
