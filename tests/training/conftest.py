"""A tiny dataset of coloured boxes, and settings of a tiny run on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jaxtyping
import pytest
from dataset_writers import write_boxes, write_json
from report_pages import without_charts
from tiny_runs import settings_maker

from querybox.training import RunSettings, train


@pytest.fixture(autouse=True)
def no_drawing() -> Iterator[None]:
    with without_charts():
        yield


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Check no shapes: that takes a third of a tiny run's time, and other tests check those of the same code."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def boxes_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy 96 x 64 images with a red and a blue box, but for one without the blue and one without both."""
    return write_boxes(tmp_path_factory.mktemp("boxes"), (96, 64), sides=(16, 40), kept={4: 1, 8: 0})


@pytest.fixture(scope="session")
def few_json(boxes_json: Path) -> Path:
    """The first two of these images, to evaluate on."""
    content = json.loads(boxes_json.read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] <= 2]
    return write_json(boxes_json.with_name("few.json"), content)


@pytest.fixture
def run_settings(boxes_json: Path, tmp_path: Path) -> Callable[..., RunSettings]:
    """Make the settings of a tiny run into the folder `output`, with settings of `train` that differ."""
    return settings_maker(boxes_json, tmp_path)


@pytest.fixture(scope="session")
def trained_once(boxes_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with without_charts():
        return train(settings_maker(boxes_json, tmp_path_factory.mktemp("trained"))(epochs=1)).run_dir


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """The folder of `run_settings(epochs=1)` after its training."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))
