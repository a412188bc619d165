from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from PIL import Image
from report_pages import without_charts
from tiny_models import CATS_AND_DOGS, save_detector

from querybox.cli import main

Run: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def no_drawing() -> Iterator[None]:
    with without_charts():
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved detector with random weights that knows cats and dogs."""
    return save_detector(tmp_path_factory.mktemp("model") / "model.safetensors", 32, 64)


@pytest.fixture(scope="session")
def public_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a backbone that the public layouts know."""
    folder = tmp_path_factory.mktemp("public_model")
    return save_detector(folder / "model.safetensors", 32, 64, backbone="resnet18.tv_in1k")


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
            category = CATS_AND_DOGS[number % 2].id
            box = [5.0, 6.0, 30.0, 20.0]
            annotations.append({"id": number, "image_id": number, "category_id": category, "bbox": box})
        if split == "train":
            annotations.append({"id": 99, "image_id": 1, "category_id": 3, "bbox": [1, 1, 0, 5]})
        categories = [{"id": category.id, "name": category.name} for category in CATS_AND_DOGS]
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
