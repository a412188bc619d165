"""Runs that train on tiles: what they say and write, how they are resumed, and what is chosen for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from dataset_writers import write_json
from safetensors.torch import load_file
from tiny_models import TRAINABLE

from querybox.checkpoints import native
from querybox.checkpoints.blueprint import Blueprint
from querybox.data import read_dataset
from querybox.data.tiled import tiled
from querybox.data.tiling import suitable_tile
from querybox.diagnosis.record import read_record
from querybox.errors import DataError
from querybox.evaluation.evaluate import evaluate
from querybox.runfile import read_run_file
from querybox.training import RunSettings, train
from querybox.training.auto import choose
from querybox.training.loop import Trainer
from querybox.training.object_sides import with_object_sides
from querybox.training.resources import Resources
from querybox.training.update import Update

EXAMPLE = Path(__file__).parents[2] / "examples" / "blood_cells"
MakeSettings = Callable[..., RunSettings]
TILES = {"tile": 48, "overlap": 0.25}


def test_a_run_on_tiles(
    run_settings: MakeSettings, boxes_json: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Eight images of 96 x 64 have six tiles of 48 pixels each, which overlap by 24 and 32 pixels."""
    data = read_dataset(boxes_json)
    sides = [each.boxes_xyxy[:, 2:] - each.boxes_xyxy[:, :2] for each in data.images]
    wholes = sum(bool((each > (24, 32)).any()) for each in sides)
    assert 0 < wholes < 8
    views = 48 + wholes
    settings = run_settings(data={**TILES, "val": str(boxes_json), "image_size": 32}, batch_size=11, epochs=1)
    result = train(settings)
    said = capfd.readouterr().err
    assert f"{views} views of 8 images are trained on, tiles of 48 pixels with an overlap of 0.25" in said
    assert result.run_dir.joinpath("metrics.csv").read_text().splitlines()[1].startswith(f"1,{views // 11},")
    assert read_run_file(result.run_dir / "run.yaml")["data"]["tile"] == 48
    facts = read_record(result.run_dir).training
    assert facts is not None
    assert facts.images == 48

    detector = result.detector
    medians = detector.preprocessing.object_sides
    assert medians is not None
    assert medians.original / medians.resized == pytest.approx(48 / 32)
    expected = evaluate(detector, data, tile=48, overlap=0.25).metrics
    assert result.metrics == pytest.approx(expected, nan_ok=True)
    assert json.loads((result.run_dir / "validation.json").read_text())["train"]["images"] == 8


@pytest.mark.parametrize("name", ["weights.safetensors", "detr.safetensors"])
def test_the_weights_of_the_example_state_the_sizes_of_its_objects(name: str) -> None:
    _, card = native.read(EXAMPLE / name)
    preprocessing = Blueprint.from_card(card).preprocessing
    assert preprocessing.object_sides is not None
    plain = replace(preprocessing, object_sides=None)
    assert with_object_sides(plain, read_dataset(EXAMPLE, "train")) == preprocessing
    assert suitable_tile(preprocessing) == 480  # the height of all its images


@pytest.mark.usefixtures("without_shape_checks")
def test_a_resumed_run_on_tiles_ends_as_if_it_had_not_stopped(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(run_settings("whole", data=TILES, batch_size=16)).run_dir
    settings = run_settings("parts", data=TILES, batch_size=16)
    update = Trainer.update

    def stopping(self: Trainer, *arguments: Any) -> Update:
        done = update(self, *arguments)
        return replace(done, stop="signal" if self.progress.step + 1 == 4 else None)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stopping)
        with pytest.raises(SystemExit):
            train(settings)
    parts = train(settings, resume=True).run_dir
    first, second = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.fixture
def large_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two TIFFs of 120 x 100 pixels with two red boxes, where only 10,000 pixels may be decoded at once."""
    for module in ("image", "tiled"):
        monkeypatch.setattr(f"querybox.data.{module}.MAX_PIXELS", 10_000)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in (1, 2):
        pixels = np.random.default_rng(number).integers(90, 160, (100, 120, 3), dtype=np.uint8)
        for x, y in ((10 * number, 20), (60, 70)):
            pixels[y : y + 20, x : x + 20] = (220, 30, 30)
            box = {"image_id": number, "category_id": 1, "bbox": [x, y, 20, 20]}
            annotations.append({"id": len(annotations) + 1, **box})
        tifffile.imwrite(tmp_path / f"{number}.tif", pixels, photometric="rgb", tile=(32, 32))
        images.append({"id": number, "file_name": f"{number}.tif", "width": 120, "height": 100})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "red"}]}
    return write_json(tmp_path / "large.json", content)


def test_large_files_are_trained_on_in_parts(run_settings: MakeSettings, large_boxes: Path) -> None:
    data = {"train": str(large_boxes), "val": str(large_boxes), "image_size": 32, "tile": 48}
    result = train(run_settings(data={**data, "cache": True}, epochs=1))
    assert json.loads((result.run_dir / "validation.json").read_text())["train"]["left_out"] == 0
    assert 0 <= result.metrics["AP"] <= 1
    with pytest.raises(DataError, match=r"2 of 2, more than data.max_corrupt = 0.05"):
        train(run_settings("whole", data={**data, "tile": None}, epochs=1))


def test_choices_follow_from_the_tiles(boxes_json: Path) -> None:
    """Objects are larger in a tile than in the image, so that the tiles are shown smaller."""
    data = read_dataset(boxes_json)
    laptop = Resources(device="cpu", memory=8 << 30, cores=2)
    settings = RunSettings.parse({"data": {"train": "photos", **TILES}})
    choice = choose(settings, tiled(data, settings.data), laptop)
    assert choice.describe().startswith("recipe auto: 48 training tiles, ")
    assert choice.settings.data.cache
    assert (choice.settings.data.tile, choice.settings.data.overlap) == (48, 0.25)
    whole = choose(RunSettings.parse({"data": {"train": "photos"}}), data, laptop)
    assert choice.facts.small_object > whole.facts.small_object
    assert choice.facts.aspect == 1
    assert TRAINABLE["queries"] < choice.settings.model["queries"]
