"""Images of more than 8 bits: their range of values is chosen once, and everything that follows uses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import querybox
from querybox.data.deep import DeepValues
from querybox.data.settings import DataSettings, Depth
from querybox.errors import ConfigError
from querybox.exporting.card import Card
from querybox.exporting.engine import ExportedModel
from querybox.training import RunSettings, train
from querybox.training.depth import choose_depth, with_depth
from querybox.training.start import resolve

MakeSettings = Callable[..., RunSettings]


@pytest.mark.parametrize(
    ("low", "high", "top", "depth"),
    [
        (0, 65535, 65535, None),  # the whole range
        (0, 16384, 65535, None),  # a quarter of it
        (0, 4095, 65535, 12),
        (200, 3000, 65535, 12),  # 12 bits in dim light
        (0, 1023, 65535, 10),
        (0, 4095, 4095, None),  # a TIFF that states 12 bits
        (0, 900, 4095, 10),
        (7012, 9120, 65535, (7012, 9120)),  # thermal: an offset, and little contrast
        (29000, 31000, 65535, (29000, 31000)),
        (5000, 5000, 65535, None),  # says nothing
        (0, 1, 65535, 1),
    ],
)
def test_depth_follows_from_the_values(low: int, high: int, top: int, depth: Depth | None) -> None:
    assert choose_depth(DeepValues(low, high, top)) == depth


def test_depth_is_bits_or_a_range() -> None:
    assert DataSettings(depth=12).pixel_range == (0.0, 4095.0)
    assert DataSettings.parse({"depth": [-20, 40.5]}).pixel_range == (-20, 40.5)
    assert DataSettings().pixel_range is None
    for wrong in ([40, -20], [3, 3], [0, float("nan")], 0, 33, "deep"):
        with pytest.raises(ConfigError, match="depth"):
            DataSettings.parse({"depth": wrong})


@pytest.fixture(scope="module")
def deep_boxes(boxes_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of boxes, with 12-bit values in PNGs of 16 bits."""
    folder = Path(shutil.copytree(boxes_json.parent, tmp_path_factory.mktemp("deep") / "boxes"))
    for path in folder.glob("*.png"):
        values = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        Image.fromarray(values).save(path)
    return folder / boxes_json.name


def test_all_that_follows_training_reads_images_as_it_did(
    run_settings: MakeSettings, deep_boxes: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = {"train": str(deep_boxes)}
    result = train(run_settings(data=data, epochs=1))
    said = capfd.readouterr().err
    assert said.count("8 images of more than 8 bits") == 1
    assert "0 to 4095 become 0 to 255 (data.depth=12)" in said
    assert yaml.safe_load((result.run_dir / "run.yaml").read_text())["data"]["depth"] == 12
    detector = querybox.Detector.load(result.run_dir)
    assert detector.preprocessing.pixel_range == (0.0, 4095.0)

    path = deep_boxes.parent / "1.png"
    values = np.asarray(Image.open(path)).astype(float)
    expected = np.repeat(np.round(values / 4095 * 255).astype(np.uint8)[..., None], 3, axis=2)
    (found,) = detector.predict(path, threshold=0)
    (same,) = detector.predict(Image.fromarray(expected), threshold=0)
    torch.testing.assert_close(found.scores, same.scores, rtol=0, atol=0)
    torch.testing.assert_close(found.boxes_xyxy, same.boxes_xyxy, rtol=0, atol=0)
    assert found.pixel_range == (0.0, 4095.0)  # so that its picture is drawn alike
    read = querybox.data.read_pixels(
        querybox.read_dataset(deep_boxes).images[0], pixel_range=detector.preprocessing.pixel_range
    )
    np.testing.assert_array_equal(read.permute(1, 2, 0).numpy(), expected)

    resumed = train(run_settings(data=data, epochs=2), resume=True)  # which does not examine the images again
    assert resumed.detector.preprocessing.pixel_range == (0.0, 4095.0)
    settings: dict[str, Any] = run_settings("finetuned", data=data, epochs=1).model_dump(exclude_unset=True)
    del settings["recipe"], settings["model"]
    weights = str(result.run_dir / "last.safetensors")
    assert resolve(RunSettings.parse({**settings, "weights": weights})).data.pixel_range == (0, 4095)
    card = Card.from_json(Card.of(detector, "float32").to_json(), "file")
    assert ExportedModel(card, run=lambda *_: {}).preprocessing.pixel_range == (0.0, 4095.0)


def test_a_depth_that_is_set_is_kept(run_settings: MakeSettings, deep_boxes: Path) -> None:
    data = querybox.read_dataset(deep_boxes)
    deep = [DeepValues(100, 900, 65535), DeepValues(0, 4000, 65535)]
    settings = run_settings(data={"train": str(deep_boxes), "depth": 16})
    assert with_depth(settings, data, deep) == (settings, "")
    settings = run_settings(data={"train": str(deep_boxes)})
    assert with_depth(settings, data, []) == (settings, "")  # no image of more than 8 bits
    chosen, note = with_depth(settings, data, deep)
    assert chosen.data.depth == 12
    assert note == (
        f"{deep_boxes}: 2 images of more than 8 bits with values from 0 to 4000; 0 to 4095 become 0 to 255 "
        "(data.depth=12)"
    )
