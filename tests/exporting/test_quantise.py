from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from traces import trace_once

from querybox.data import DetectionData, read_dataset
from querybox.detector import Detector
from querybox.evaluation.evaluate import evaluate
from querybox.exporting import export, load_exported
from querybox.exporting.graph import decoder_nodes

EXAMPLE = Path(__file__).parents[2] / "examples" / "blood_cells"
SIZE = (288, 384)
"""That of all images, resized: a trace for a fixed size takes a fraction of the time of one for any size."""


@pytest.fixture(scope="module")
def blood_cells() -> Detector:
    """Plain DETR; it looks at small images here, to be quick."""
    detector = Detector.load(EXAMPLE / "detr.safetensors")
    detector.preprocessing = dataclasses.replace(
        detector.preprocessing, short_side=SIZE[0], long_side=SIZE[1]
    )
    return detector


@pytest.fixture(scope="module")
def data() -> DetectionData:
    data = read_dataset(EXAMPLE, "val")
    return dataclasses.replace(data, images=data.images[:10])


def test_int8_finds_as_much(blood_cells: Detector, data: DetectionData, tmp_path: Path) -> None:
    stages: list[str] = []
    done = export(
        blood_cells,
        tmp_path / "small.xml",
        to="openvino",
        precision="int8",
        size=SIZE,
        calibration=data,
        callback=stages.append,
    )
    assert stages == [
        "tracing", "writing", "verifying", "evaluating in float32", "quantising", "evaluating in int8",
    ]  # fmt: skip
    assert [path.name for path in done.files] == ["small.xml", "small.bin"]
    assert done.verification.scores < 1e-4  # of what was quantised
    assert done.AP is not None
    before, after = done.AP
    assert before == pytest.approx(evaluate(blood_cells, data).metrics["AP"], abs=1e-3)
    assert before > 0.1
    assert after == pytest.approx(before, abs=0.02)  # ten images; the guide has the test split's
    engine = load_exported(tmp_path / "small.xml")
    assert engine.card.precision == "int8"
    assert evaluate(engine, data).metrics["AP"] == after
    assert done.files[1].stat().st_size < 8e6  # 4.1 M parameters


def test_values_of_cross_attention_are_computed_in_int8(deformable: Detector) -> None:
    program = trace_once(deformable)
    kept = decoder_nodes(program)
    layers = {
        list(node.meta["nn_module_stack"].values())[-1][0]: node.name
        for node in program.graph.nodes
        if node.target is torch.ops.aten.linear.default
    }
    in_int8 = {layer for layer, name in layers.items() if name not in kept and "decoder" in layer}
    assert in_int8 == {f"detector.decoder.layers.{index}.cross_attention.value" for index in (0, 1)}
    assert layers["detector.decoder.layers.0.cross_attention.offset"] in kept
