"""Deformable DETR, DINO and RT-DETR: no class for "no object", and queries that are made of proposals."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from comparisons import assert_same_detections
from torch.export import ExportedProgram
from traces import trace_once

from querybox.checkpoints.find import EXPORTED, Format
from querybox.detector import Detector
from querybox.exporting import onnx, openvino, write
from querybox.exporting.card import Card
from querybox.exporting.check import check_detections, differences, verify
from querybox.exporting.engine import ExportedModel
from querybox.exporting.graph import trace
from querybox.exporting.write import write_model
from querybox.inference.predict import predict

BATCHES = [([[66, 98]], (66, 98)), ([[100, 131], [77, 140]], (100, 140)), ([[40, 70]] * 3, (80, 110))]
"""Sizes of the images, and of the batch that they are padded to; two have fewer cells than DINO has queries."""
CONVERTED: tuple[Format, ...] = ("onnx", "openvino")
"""Formats with operations of their own; a `torch` file holds the traced program from which these are made."""


@pytest.fixture(scope="module")
def distinct_program(distinct: Detector) -> ExportedProgram:
    return trace(distinct)


@pytest.fixture(scope="module")
def dfine_program(dfine: Detector) -> ExportedProgram:
    return trace(dfine)


def check(program: ExportedProgram, detector: Detector, path: Path, to: Format) -> None:
    """Write a file; compare it with the detector query by query at several sizes, and as an engine of `predict`."""
    path = path / f"model{EXPORTED[to]}"
    with mock.patch.object(onnx, "to_onnx", wraps=onnx.to_onnx) as conversion:
        engine = write_model(program, path, Card.of(detector, "float32"), detector, to)
    assert conversion.call_count == (to == "onnx")  # no operation had to be decomposed
    assert engine.card == Card.of(detector, "float32")
    assert not engine.card.no_object
    assert engine.card.masks == (detector.mask_head is not None)
    assert verify(detector, engine).scores < 1e-4
    noise = torch.Generator().manual_seed(1)
    for image_sizes, shape in BATCHES:
        sizes = torch.tensor(image_sizes)
        pixels = torch.randint(256, (len(sizes), 3, *shape), dtype=torch.uint8, generator=noise)
        answers = engine.run(pixels, sizes)
        assert answers.keys() == set(engine.card.outputs)
        assert differences(detector, engine, pixels, sizes, answers).max() < 1e-4
        check_detections(answers, sizes, engine)  # not the order of scores that are equal but for rounding
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (ours,), (theirs,) = (predict(each, picture, threshold=0.0) for each in (engine, detector))
    assert_same_detections(ours, theirs, pixels=0.02)


def test_branches_are_merged_and_batch_norms_are_folded(dfine_program: ExportedProgram) -> None:
    names = {str(node.target) for node in dfine_program.graph.nodes}
    assert not [name for name in names if "batch_norm" in name]
    assert len([node for node in dfine_program.graph.nodes if "conv2d" in str(node.target)]) == len(
        [
            name
            for name in dfine_program.state_dict
            if name.endswith("weight") and dfine_program.state_dict[name].ndim == 4
        ]
    )
    assert not [name for name in dfine_program.state_dict if "bottlenecks" in name and ".conv2." in name]


@pytest.mark.parametrize("to", CONVERTED)
def test_dfine(dfine_program: ExportedProgram, dfine: Detector, tmp_path: Path, to: Format) -> None:
    check(dfine_program, dfine, tmp_path, to)


@pytest.mark.parametrize("to", CONVERTED)
def test_distinct_queries(
    distinct_program: ExportedProgram, distinct: Detector, tmp_path: Path, to: Format
) -> None:
    """Those of DINO, whose other ranking of proposals RT-DETR has, too."""
    check(distinct_program, distinct, tmp_path, to)


def test_deformable_detr(deformable: Detector, tmp_path: Path) -> None:
    check(trace_once(deformable), deformable, tmp_path, "torch")


def test_bf16_is_verified_before_rounding_where_queries_are_chosen(
    dino: Detector, deformable: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    card = Card.of(dino, "bf16")
    file, exact = (ExportedModel(card, lambda pixels, sizes: {}) for _ in range(2))
    monkeypatch.setattr(openvino, "convert", lambda program, size: None)
    monkeypatch.setattr(openvino, "write", lambda model, path, card: None)
    monkeypatch.setattr(openvino, "in_float32", lambda model, card: exact)
    monkeypatch.setattr(write, "read_exported", lambda path, trusted: file)
    path = Path("model.xml")
    assert write_model(program, path, card, dino, "openvino") is exact
    assert write_model(program, path, card, deformable, "openvino") is file
