from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from PIL import Image

from querybox.cli import main
from querybox.detector import Detector
from querybox.structures import Category, Preprocessing

CATEGORIES = [Category(id=3, name="cat"), Category(id=9, name="dog")]
TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "width": 16,
    "heads": 2,
    "feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 8,
}
"""Settings of the recipe that make a model for tests."""

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector with random weights that knows cats and dogs."""
    return save(tmp_path_factory.mktemp("model"), TINY)


@pytest.fixture(scope="session")
def public_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a backbone that the public layouts know."""
    return save(tmp_path_factory.mktemp("public_model"), {**TINY, "backbone": "resnet18.tv_in1k"})


def save(folder: Path, settings: dict[str, Any]) -> Path:
    """Save a detector with random weights, and return its file."""
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", categories=CATEGORIES, **settings)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    detector.save(folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO dataset of 4 + 2 pictures of 40 x 60 pixels, one object in each; one box of train is empty."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        images, annotations = [], []
        for number in range(1, count + 1):
            name = f"{split}{number}.jpg"
            Image.fromarray(random.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(
                folder / "images" / name
            )
            images.append({"id": number, "file_name": name, "width": 60, "height": 40})
            category = CATEGORIES[number % 2].id
            box = [5.0, 6.0, 30.0, 20.0]
            annotations.append({"id": number, "image_id": number, "category_id": category, "bbox": box})
        if split == "train":
            annotations.append({"id": 99, "image_id": 1, "category_id": 3, "bbox": [1, 1, 0, 5]})
        categories = [{"id": category.id, "name": category.name} for category in CATEGORIES]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command line in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run_
