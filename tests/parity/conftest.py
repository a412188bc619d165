"""The reference of the system that a test module names as `SYSTEM`, and querybox's pass over the same input in float64.

Each system has one test module, so each pass is made once a session.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from references import REFERENCE, Run, pseudo_weights, public_state
from torch import Tensor

from querybox import Detector, ImageBatch, Target
from querybox.fast.memory import release_freed_memory


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """Return the memory of what the tests of a module have trained to the system at its end: up to 3 GB."""
    yield
    gc.collect()
    release_freed_memory()


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(np.load(REFERENCE / f"{request.module.SYSTEM}.npz"))


@pytest.fixture(scope="module")
def theirs(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    return public_state(request.module.SYSTEM)


@pytest.fixture(scope="module")
def detector(
    request: pytest.FixtureRequest, theirs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Detector:
    """Read from a file as the system itself would write it; in float64."""
    file = tmp_path_factory.mktemp("public") / "checkpoint.pth"
    torch.save({"model": theirs}, file)
    if request.module.SYSTEM == "huggingface":  # as the reference was computed
        config = {"model_type": "detr", "auxiliary_loss": True, "dropout": 0.0}
        file.with_name("config.json").write_text(json.dumps(config))
    detector = Detector.load(file)
    file.unlink()
    return detector.double()


@pytest.fixture(scope="module")
def batch(golden: dict[str, Any]) -> ImageBatch:
    height, width = golden["padded_size"].tolist()
    images = torch.from_numpy(pseudo_weights().images(int(golden["seed"]), height, width))
    sizes = torch.from_numpy(golden["valid_sizes"])
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for image, mask, (h, w) in zip(images, padding_mask, sizes.tolist(), strict=True):
        mask[:h, :w] = False
        image[:, mask] = 0.0
    return ImageBatch(images=images.double(), padding_mask=padding_mask, sizes=sizes)


@pytest.fixture(scope="module")
def targets(golden: dict[str, Any]) -> list[Target]:
    return [
        Target(
            boxes=torch.from_numpy(golden[f"gt_boxes_cxcywh_{i}"]),
            labels=torch.from_numpy(golden[f"gt_labels_{i}"]),
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, detector: Detector, batch: ImageBatch, targets: list[Target]) -> Run:
    with torch.set_grad_enabled(request.module.SYSTEM == "mmdet2"):  # whose gradients alone are compared
        return Run.of(detector, batch, targets)
