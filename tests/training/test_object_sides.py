"""Weights state the sizes of the objects that they were trained on, from which tile="auto" follows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import TRAINABLE

import querybox as qb
from querybox.data import DetectionData, ImageRecord
from querybox.exporting.card import Card
from querybox.object_sides import ObjectSides
from querybox.structures import Preprocessing
from querybox.training import RunSettings, train
from querybox.training.object_sides import with_object_sides

MakeSettings = Callable[..., RunSettings]


def record(
    number: int, size: tuple[int, int], sides: list[int], crowd: list[bool] | None = None
) -> ImageRecord:
    """Return an image with squares of these sides in its corner."""
    return ImageRecord(
        id=number,
        path=Path(f"{number}.png"),
        width=size[1],
        height=size[0],
        boxes_xyxy=np.array([[0, 0, side, side] for side in sides], dtype=np.float64).reshape(-1, 4),
        labels=np.zeros(len(sides), dtype=np.int64),
        crowd=np.array(crowd or [False] * len(sides), dtype=bool),
        areas=np.ones(len(sides)),
    )


def test_sides_are_medians_of_what_is_trained_on(tmp_path: Path) -> None:
    images = (
        record(1, (480, 640), [100, 90, 70], [False, False, True]),
        record(2, (960, 1280), [100]),
        record(3, (96, 96), []),
    )
    data = DetectionData(source=tmp_path, categories=(qb.Category(id=1, name="a"),), images=images)
    before = Preprocessing(short_side=240, long_side=400, object_sides=ObjectSides(original=1, resized=1))
    sides = with_object_sides(before, data).object_sides
    assert sides == ObjectSides(original=100, resized=45)  # of 100, 90, 100 and of 50, 45, 25
    none = dataclasses.replace(data, images=images[2:])
    assert with_object_sides(before, none).object_sides is None


def test_weights_of_a_run_state_them(
    run_settings: MakeSettings, boxes_json: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images of 96 x 64 pixels, which the model sees as 48 x 32."""
    data: dict[str, Any] = {"image_size": 32, "long_side": 96}
    detector = train(run_settings(data=data, epochs=1)).detector
    sides = detector.preprocessing.object_sides
    assert sides is not None
    assert 16 <= sides.original <= 40
    assert sides.original / sides.resized == pytest.approx(2)
    detector.save(tmp_path / "again.safetensors")
    again = qb.load(tmp_path / "again.safetensors")
    assert again.preprocessing == detector.preprocessing
    assert Card.from_json(Card.of(detector, "float32").to_json(), "card").preprocessing.object_sides == sides

    caplog.set_level(logging.INFO, "querybox")
    photo = boxes_json.parent / "1.png"
    (auto,) = again.predict(photo, tile="auto", threshold=0)
    assert "tile=auto: 64 pixels; the training objects had a median side of" in caplog.text
    (tiled,) = again.predict(photo, tile=64, threshold=0)
    assert (auto.boxes_xyxy == tiled.boxes_xyxy).all()
    assert len(auto) > TRAINABLE["queries"]  # of more than one view
