"""ExecuTorch files. Those tests that write or run one need the extra ``executorch``, which is not among the others."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_same_detections

from querybox.detector import Detector, load
from querybox.errors import CheckpointError, ConfigError, MissingExtraError
from querybox.exporting import ExportedModel, executorch, export, load_exported
from querybox.exporting.card import Card
from querybox.exporting.graph import Graph

SIZE = (80, 104)
installed = pytest.mark.skipif(find_spec("executorch") is None, reason="ExecuTorch is not installed")


def test_a_size_is_required(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"got no size for executorch, .* pass size=\(640, 640\)"):
        export(detector, tmp_path / "a.pte", to="executorch")
    assert not list(tmp_path.iterdir())


def test_a_file_is_opened_only_if_it_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="if you trust its source, pass --trust"):
        load(tmp_path / "a.pte")


def test_a_missing_package_is_told(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.pte").write_bytes(b"anything")
    for name in [each for each in sys.modules if each.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    message = r"needs the package executorch.* pip install 'querybox\[executorch\]'"
    with pytest.raises(MissingExtraError, match=f"running an ExecuTorch file {message}"):
        load_exported(tmp_path / "a.pte", trusted=True)
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(MissingExtraError, match=f"writing an ExecuTorch file {message}"):
        executorch.write(program, tmp_path / "b.pte", Card.of(detector, "float32"))


@installed
def test_a_file_of_something_else_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_text("<html></html>" * 100)
    with pytest.raises(CheckpointError, match=r"a\.pte: corrupt, or not an ExecuTorch program"):
        load_exported(tmp_path / "a.pte", trusted=True)


@pytest.fixture(scope="module")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DETR with masks."""
    path = tmp_path_factory.mktemp("executorch") / "model.pte"
    done = export(detector, path, to="executorch", size=SIZE)
    assert done.verification.batches == 2
    return path


@installed
def test_answers_as_the_detector_does(file: Path, detector: Detector) -> None:
    engine = load(file, trusted=True)
    assert isinstance(engine, ExportedModel)
    assert engine.card == Card.of(detector, "float32", SIZE)
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2, 3, 72, 90), dtype=torch.uint8, generator=noise)
    sizes = torch.tensor([[72, 81], [60, 90]])
    with torch.inference_mode():
        values = Graph(detector.eval())(F.pad(pixels, (0, 14, 0, 8)), sizes)
    answers = engine.run(pixels, sizes)
    for name, expected in zip(engine.card.outputs, values, strict=True):
        if name in ("logits", "boxes", "masks"):
            torch.testing.assert_close(answers[name], expected, rtol=0, atol=1e-4)
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    (again,), (first,) = (engine.predict([picture], threshold=0.0) for _ in range(2))
    assert_same_detections(again, first, pixels=0.0)


@installed
def test_queries_are_selected_as_the_detector_does(dino: Detector, tmp_path: Path) -> None:
    done = export(dino, tmp_path / "model.pte", to="executorch", size=SIZE)
    assert max(done.verification.scores, done.verification.boxes) < 1e-4


@installed
def test_a_truncated_file_is_told(file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pte"
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"broken\.pte: corrupt"):
        load_exported(broken, trusted=True)
