"""A tiny dataset of coloured boxes, and settings of a tiny run on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from dataset_writers import write_boxes
from report_pages import without_charts
from tiny_models import TRAINABLE

from querybox.training import RunSettings


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
                "model": {**TRAINABLE, **(model or {})},
                "data": {
                    "train": str(boxes_json),
                    "val": "none",
                    "image_size": 64,
                    "workers": 0,
                    **(data or {}),
                },
                "train": {"epochs": 2, "batch_size": 4, "lr": 1e-3, **train},
                "output": str(tmp_path / output),
            }
        )

    return make
