from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_detector
from traces import trace_once

from querybox.checkpoints.hub import Snapshot
from querybox.detector import Detector
from querybox.errors import ConfigError


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose detector looks at images of more than 32 pixels a side, as a .pt2 needs; it is traced once.

    It has few layers: each operation takes long to be written and read.
    """
    monkeypatch.setattr("querybox.exporting.write.trace", trace_once)
    save_detector(tmp_path / "run" / "best.safetensors", 64, 96, encoder_layers=0, decoder_layers=1)
    return tmp_path / "run"


def test_exports_describes_predicts_and_evaluates(
    run: Any, run_folder: Path, photos: Path, tmp_path: Path
) -> None:
    model = run_folder / "best.safetensors"
    code, out, err = run("export", model, "out/small.onnx", "--to", "onnx")
    assert (code, err) == (0, "")
    assert (
        "The predictions in float32 are those of the detector: on 3 batches scores differ by at most " in out
    )
    assert "Wrote out/small.onnx (" in out
    assert "Run it: querybox predict out/small.onnx IMAGES" in out
    code, info, _ = run("info", "out/small.onnx")
    assert code == 0
    for part in ("an exported model", "float32", "2: cat, dog", "short side 64, long side at most 96 pixels"):
        assert part in info
    for name, which in (("a", model), ("b", "out/small.onnx")):
        assert run("evaluate", which, photos, "--split", "val", "--output", name)[0] == 0
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text())["metrics"] for name in ("a", "b"))
    assert a == pytest.approx(b, abs=1e-6)
    assert (
        "objects in 2 images"
        in run("predict", "out/small.onnx", *sorted((photos / "images").glob("val*")))[1]
    )


@pytest.mark.usefixtures("run_folder")
def test_writes_beside_the_model(run: Any, photos: Path) -> None:
    assert "Wrote run/best.pt2" in run("export", "run", "--to", "torch")[1]
    picture = photos / "images" / "val1.jpg"
    code, _, err = run("predict", "run/best.pt2", picture)
    assert code == 2
    assert "--trust" in err
    assert run("predict", "run/best.pt2", picture, "--trust")[0] == 0


@pytest.mark.parametrize(
    ("name", "file"),
    [("rtdetr-r18", "rtdetr-r18.onnx"), ("hf://PekingU/rtdetr_r18vd@main", "rtdetr_r18vd.onnx")],
)
def test_a_name_is_exported_to_the_current_folder(
    run: Any, model: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    snapshot = Snapshot(name="hf://PekingU/rtdetr_r18vd@1", folder=model.parent)
    monkeypatch.setattr("querybox.checkpoints.find.fetch", lambda _: snapshot)

    def export(detector: Detector, target: Path, **_: object) -> None:
        raise ConfigError(f"would write {target}")

    monkeypatch.setattr("querybox.exporting.export", export)
    assert f"would write {file}\n" in run("export", name, "--to", "onnx")[2]
    beside = model.with_suffix(".onnx")
    assert f"would write {beside}\n" in run("export", model, "--to", "onnx")[2]


def test_weights_of_another_model_are_kept(run: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_text("weights")
    code, _, err = run("export", model, "other.xml", "--to", "openvino")
    assert code == 2
    assert "other.bin: exists, but not other.xml, whose weights it would be; expected a new file" in err
    assert (tmp_path / "other.bin").read_text() == "weights"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--to", "coreml"], "Invalid value"),
        (["MODEL", "a.onnx", "--to", "torch"], "ConfigError: a.onnx: expected the suffix .pt2 for torch"),
        (
            ["MODEL", "--to", "onnx", "--precision", "bf16"],
            "ConfigError: export got precision 'bf16' for onnx",
        ),
        (["MODEL", "--to", "openvino", "--precision", "int8"], "'int8' requires calibration data"),
        (["MODEL", "--to", "onnx", "--split", "val"], "--split has no effect without --calibrate"),
        (["missing.safetensors", "--to", "onnx"], "CheckpointError: missing.safetensors: no such"),
    ],
)
def test_bad_input_is_told_in_one_line(run: Any, model: Path, words: list[str], message: str) -> None:
    code, _, err = run("export", *(model if word == "MODEL" else word for word in words))
    assert code == 2
    assert err.count("\n") == 1
    assert message in err
