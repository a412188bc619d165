"""The reference of the system that a test module names as `SYSTEM`, and querybox's pass over the same input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from references import REFERENCE, Run, pseudo_weights, public_state
from torch import Tensor

from querybox import Criterion, Detector, ImageBatch, Target

STAGES = ("backbone", "neck", "encoder", "encoder.position", "decoder.norm")


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """The reference was computed with two: with one, convolutions round differently, by 1e-4 in a gradient's norm."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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
    """Read from a file as the system itself would write it."""
    file = tmp_path_factory.mktemp("public") / "checkpoint.pth"
    torch.save({"model": theirs}, file)
    if request.module.SYSTEM == "huggingface":  # as the reference was computed
        config = {"model_type": "detr", "auxiliary_loss": True, "dropout": 0.0}
        file.with_name("config.json").write_text(json.dumps(config))
    detector = Detector.load(file)
    file.unlink()
    return detector


@pytest.fixture(scope="module")
def batch(golden: dict[str, Any]) -> ImageBatch:
    height, width = golden["padded_size"].tolist()
    images = torch.from_numpy(pseudo_weights().images(int(golden["seed"]), height, width))
    sizes = torch.from_numpy(golden["valid_sizes"])
    padding_mask = torch.ones(len(images), height, width, dtype=torch.bool)
    for image, mask, (h, w) in zip(images, padding_mask, sizes.tolist(), strict=True):
        mask[:h, :w] = False
        image[:, mask] = 0.0
    return ImageBatch(images=images, padding_mask=padding_mask, sizes=sizes)


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
def run(detector: Detector, batch: ImageBatch, targets: list[Target]) -> Iterator[Run]:
    stages: dict[str, Any] = {}
    handles = [
        detector.get_submodule(name).register_forward_hook(
            lambda _m, _i, result, name=name: stages.update({name: result})
        )
        for name in STAGES
    ]
    output = detector(batch)
    losses = Criterion()(output, targets)
    torch.stack(list(losses.values())).sum().backward()
    yield Run(detector, output, stages, losses)
    for handle in handles:
        handle.remove()
