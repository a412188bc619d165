from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry
from traces import made_once, trace_once

from querybox.checkpoints.find import EXPORTED, Format
from querybox.detector import Detector
from querybox.exporting import Exported, ExportedModel, export, load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.structures import Category, Preprocessing

Export = Callable[[Format], Exported]


def small(recipe: str, spread: float, **settings: Any) -> Detector:
    """Return a small detector with random weights of this `spread`; one row of its head stands for no class."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        recipe,
        categories=[Category(id=3, name="Katze"), Category(id=9, name="<Hund> & Co")],
        **{"heads": 2, **settings},
        feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        unused_rows=(1,),
    )
    for part in detector.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=spread)  # so that what is seen makes a difference
    detector.preprocessing = Preprocessing(short_side=64, long_side=96, resizing="mmdet", clip_boxes=False)
    return detector


@pytest.fixture(scope="session", autouse=True)
def one_registry() -> Iterator[None]:
    """Share PyTorch's table of functions for ONNX, which it would make anew for each conversion, in a second."""
    once = staticmethod(cache(ONNXRegistry.from_torchlib))
    with mock.patch.object(ONNXRegistry, "from_torchlib", once):
        yield


@pytest.fixture(scope="session")
def detector() -> Detector:
    """DETR with masks."""
    return small("detr_r18", 0.3, backbone="test_resnet", width=16, queries=8, masks=True)


RELATIVE: dict[str, Any] = {
    "backbone": "test_resnet",
    "width": 32,
    "strides": (16,),
    "levels": 2,
    "points": 2,
}


@pytest.fixture(scope="session")
def deformable() -> Detector:
    """Deformable DETR."""
    return small("deformable_detr_r50", 0.2, queries=8, **RELATIVE)


@pytest.fixture(scope="session")
def dino() -> Detector:
    """DINO, whose queries are made of proposals."""
    return small("dino_r50", 0.2, queries=60, **RELATIVE)


@pytest.fixture(scope="session")
def distinct() -> Detector:
    """DINO whose proposals are peaks, and whose queries see only those before them, with masks."""
    return small("dino_r50", 0.2, queries=60, distinct=True, masks=True, **RELATIVE)


@pytest.fixture(scope="session")
def dfine() -> Detector:
    """D-FINE, whose encoder fuses maps, and whose boxes are means of distributions, with sampling of single cells."""
    return small(
        "dfine_s",
        0.2,
        queries=60,
        **{**RELATIVE, "strides": (16, 32), "points": (3, 1), "discrete": True, "encoder_width": 16},
    )


@pytest.fixture(scope="session")
def segmenter() -> Detector:
    """DETR with its own mask head, and with more queries than it computes the masks of at once."""
    return small("detr_r18", 0.3, backbone="test_resnet", width=128, heads=8, queries=12, masks="attention")


@pytest.fixture(scope="session")
def program(detector: Detector) -> ExportedProgram:
    """The detector, traced."""
    return trace_once(detector)


@pytest.fixture(scope="session")
def exported(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export the detector to a format, once; all formats are written from one trace."""
    done: dict[Format, Exported] = {}

    def exported_(to: Format) -> Exported:
        if to not in done:
            with made_once():
                done[to] = export(detector, tmp_path_factory.mktemp(to) / f"model{EXPORTED[to]}", to=to)
        return done[to]

    return exported_


@pytest.fixture(scope="session")
def fixed(
    dfine: Detector, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[ExportedPrecision], Exported]:
    """Export D-FINE for a fixed size to ONNX in a precision, once; all are written from one model."""

    @cache
    def fixed_(precision: ExportedPrecision) -> Exported:
        path = tmp_path_factory.mktemp("fixed") / "fixed.onnx"
        with made_once():
            return export(dfine, path, to="onnx", precision=precision, size=(96, 128))

    return fixed_


@pytest.fixture(scope="session", params=["onnx", "openvino", "torch"])
def file(request: pytest.FixtureRequest, exported: Export) -> Path:
    """The exported detector, in each format."""
    return exported(request.param).files[0]


@pytest.fixture(scope="session")
def loaded() -> Callable[[Path], ExportedModel]:
    """Load an exported model, once."""
    return cache(partial(load_exported, trusted=True))


@pytest.fixture(scope="session")
def engine(file: Path, loaded: Callable[[Path], ExportedModel]) -> ExportedModel:
    """The exported detector in each format, loaded."""
    return loaded(file)
