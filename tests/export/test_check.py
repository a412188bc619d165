from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from querybox.detector import Detector
from querybox.errors import ExportError
from querybox.export import export, write
from querybox.export.card import OUTPUTS, Card
from querybox.export.check import prove
from querybox.export.engine import Answers, ExportedModel
from querybox.export.graph import Graph


def engine(detector: Detector, **spoiled: float) -> ExportedModel:
    """Run the detector itself as if it were a file, with something added to some of its answers."""
    graph = Graph(copy.deepcopy(detector).eval())

    def run(pixels: Tensor, sizes: Tensor) -> Answers:
        with torch.inference_mode():
            answers = dict(zip(OUTPUTS, graph(pixels, sizes), strict=True))
        return {name: answer + spoiled.get(name, 0) for name, answer in answers.items()}

    return ExportedModel(Card.of(detector, "float32"), run)


def test_proves_what_is_equal(detector: Detector) -> None:
    proof = prove(detector, engine(detector))
    assert (proof.batches, proof.scores, proof.boxes) == (3, 0.0, 0.0)


@pytest.mark.parametrize("name", ["boxes", "scores", "labels", "boxes_xyxy"])
@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_finds_what_differs(detector: Detector, name: str, error: float) -> None:
    with pytest.raises(ExportError, match="nothing was written"):
        prove(detector, engine(detector, **{name: error}))


def test_finds_other_weights(detector: Detector) -> None:
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.get_parameter("decoder.class_head.bias")[0] += 1e-2
    with pytest.raises(ExportError, match=r"scores by 0\.00"):
        prove(detector, engine(other))


def test_finds_that_padding_is_ignored(detector: Detector) -> None:
    right = engine(detector)

    def run(pixels: Tensor, sizes: Tensor) -> Answers:
        return right.run(pixels, torch.tensor([pixels.shape[2:]] * len(pixels)))

    with pytest.raises(ExportError, match="nothing was written"):
        prove(detector, ExportedModel(right.card, run))


def test_a_file_that_differs_is_not_kept(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(_: object, path: Path, *__: object) -> ExportedModel:
        path.write_bytes(b"wrong")
        return engine(detector, boxes=0.01)

    monkeypatch.setattr(write, "trace", lambda detector: None)
    monkeypatch.setattr(write, "write_model", write_wrong)
    (tmp_path / "model.onnx").write_bytes(b"as it was")
    with pytest.raises(ExportError):
        export(detector, tmp_path / "model.onnx", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"as it was"
