"""A tiny dataset of coloured boxes, and settings of a tiny run on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from querybox.training import RunSettings

TINY = {
    "backbone": "test_efficientnet",
    "backbone_weights": None,
    "width": 32,
    "heads": 4,
    "feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 10,
}


@pytest.fixture(scope="session")
def boxes_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy 96 x 64 images with a red and a blue box, but for one without the blue and one without both."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(7)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, 9):
        pixels = rng.integers(90, 160, (64, 96, 3), dtype=np.uint8)
        colors = ((1, (220, 30, 30)), (2, (30, 30, 220)))
        for label, color in colors[: {4: 1, 8: 0}.get(number, 2)]:
            w, h = rng.integers(16, 40, 2).tolist()
            x, y = int(rng.integers(0, 96 - w)), int(rng.integers(0, 64 - h))
            pixels[y : y + h, x : x + w] = color
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": [x, y, w, h]}
            )
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture
def run_settings(boxes_json: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """Make the settings of a tiny run into the folder `output`, with settings of `train` that differ."""

    def make(
        output: str = "run",
        *,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        **train: Any,
    ) -> RunSettings:
        return RunSettings.parse(
            {
                "recipe": "detr_r50",
                "model": {**TINY, **(model or {})},
                "data": {"train": str(boxes_json), "image_size": 64, "workers": 0, **(data or {})},
                "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, **train},
                "output": str(tmp_path / output),
            }
        )

    return make
