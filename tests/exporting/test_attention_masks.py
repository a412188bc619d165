"""DETR with its own mask head: attention maps and convolutions of each query are part of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_same_detections
from torch.export import ExportedProgram

from querybox.checkpoints.find import EXPORTED, Format
from querybox.detector import Detector
from querybox.exporting.card import Card
from querybox.exporting.check import check_detections, differences, verify
from querybox.exporting.graph import trace
from querybox.exporting.write import write_model
from querybox.inference.predict import predict

BATCHES = [([[66, 98]], (66, 98)), ([[100, 131], [77, 140]], (100, 140))]
"""Sizes of the images, and of the batch that they are padded to."""


@pytest.fixture(scope="module")
def program(segmenter: Detector) -> ExportedProgram:
    return trace(segmenter)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_masks_are_those_of_the_detector(
    program: ExportedProgram, segmenter: Detector, tmp_path: Path, to: Format
) -> None:
    path = tmp_path / f"model{EXPORTED[to]}"
    engine = write_model(program, path, Card.of(segmenter, "float32"), segmenter, to)
    assert engine.card.masks
    assert verify(segmenter, engine).scores < 1e-4
    noise = torch.Generator().manual_seed(1)
    for image_sizes, shape in BATCHES:
        sizes = torch.tensor(image_sizes)
        pixels = torch.randint(256, (len(sizes), 3, *shape), dtype=torch.uint8, generator=noise)
        answers = engine.run(pixels, sizes)
        assert answers["masks"].shape == (len(sizes), 12, -(-shape[0] // 4), -(-shape[1] // 4))
        assert differences(segmenter, engine, pixels, sizes, answers).max() < 1e-4
        check_detections(answers, sizes, engine)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (ours,), (theirs,) = (predict(each, picture, threshold=0.0) for each in (engine, segmenter))
    assert_same_detections(ours, theirs, pixels=0.02)
    assert theirs.masks is not None
    assert len({mask.counts for mask in theirs.masks}) > 1
