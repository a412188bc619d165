from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparisons import assert_same_detections
from PIL import Image
from torch.export import ExportedProgram

import querybox as qb
from querybox.checkpoints.find import Format
from querybox.detector import Detector, load
from querybox.errors import ConfigError, ExportError
from querybox.exporting import Exported, ExportedModel, export, load_exported, onnx, openvino, write
from querybox.exporting.card import Card
from querybox.exporting.check import check_detections
from querybox.exporting.graph import Graph, trace
from querybox.exporting.write import exported_precision
from querybox.inference.predict import predict
from querybox.structures import ImageBatch

Export = Callable[[Format], Exported]

BATCHES = [
    ([[64, 96]], (64, 96)),
    ([[96, 64], [96, 64], [96, 64]], (96, 64)),
    ([[100, 131], [77, 140]], (100, 140)),
    ([[65, 33], [35, 71]], (97, 80)),
    ([[224, 160]], (250, 333)),
    ([[180, 240], [240, 150]], (240, 240)),  # images that end between two cells
]
"""Sizes of the images, and of the batch that they are padded to."""


@pytest.mark.parametrize(("sizes", "shape"), BATCHES)
def test_answers_as_the_detector_does_at_any_size(
    engine: ExportedModel, detector: Detector, sizes: list[list[int]], shape: tuple[int, int]
) -> None:
    pixels = torch.randint(0, 256, (len(sizes), 3, *shape), dtype=torch.uint8)
    answers = engine.run(pixels, torch.tensor(sizes))
    with torch.inference_mode():
        values = Graph(detector.eval())(pixels, torch.tensor(sizes))
    expected = dict(zip(engine.card.outputs, values, strict=True))
    assert answers.keys() == expected.keys()
    assert answers["masks"].shape == (len(sizes), 8, -(-shape[0] // 4), -(-shape[1] // 4))
    for name in ("logits", "boxes"):
        torch.testing.assert_close(answers[name], expected[name], rtol=0, atol=1e-4)
    check_detections(answers, torch.tensor(sizes), engine)  # not the order of scores equal but for rounding


def test_an_outer_autocast_is_not_traced(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"autocast: {torch.is_autocast_enabled('cpu')}")

    monkeypatch.setattr(torch.export, "export", fail)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="autocast: False"):
        trace(detector)


def test_what_the_padding_holds_does_not_matter(engine: ExportedModel) -> None:
    sizes = torch.tensor([[70, 90]])
    pixels = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    other = pixels.clone()
    other[:, :, 70:] = 255
    other[:, :, :, 90:] = 7
    for one, two in zip(engine.run(pixels, sizes).values(), engine.run(other, sizes).values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_file_names_no_path_of_this_machine(file: Path) -> None:
    contents = [file.read_bytes()]
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    for path in map(os.fspath, (Path(qb.__file__).parent, Path(torch.__file__).parent, Path.cwd())):
        assert not any(path.encode() in content for content in contents)


def test_the_file_says_what_it_is(engine: ExportedModel, detector: Detector) -> None:
    assert engine.card == dataclasses.replace(Card.of(detector, "float32"), min_side=33)


@pytest.mark.parametrize("tile", [None, 64])
def test_predicts_as_the_detector_does(engine: ExportedModel, detector: Detector, tile: int | None) -> None:
    random = np.random.default_rng(0)
    pictures = [
        random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in [(64, 96), (90, 60), (64, 96)]
    ]
    ours, theirs = (predict(each, pictures, threshold=0.0, tile=tile) for each in (engine, detector))
    areas: list[int] = []
    for one, other in zip(ours, theirs, strict=True):
        assert_same_detections(one, other, pixels=0.02)
        areas += [mask.area for mask in other.masks or ()]
    assert max(areas) > 0


def test_all_that_runs_a_model_predicts_alike(detector: Detector, exported: Export) -> None:
    model = load(exported("onnx").files[0])
    assert isinstance(model, ExportedModel)
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    options: dict[str, Any] = {"threshold": 0.1, "top_k": 3, "nms": 0.9, "batch_size": 2}
    (plain,) = detector.predict(picture, **options)
    (yielded,) = predict(detector, picture, **options)
    assert torch.equal(yielded.boxes_xyxy, plain.boxes_xyxy)
    assert torch.equal(yielded.scores, plain.scores)
    for other in (detector.optimize(), model):
        (found,) = other.predict(picture, **options)
        assert_same_detections(found, plain, pixels=1e-2)
    assert len(plain) > 0


def test_repeats_itself_and_keeps_earlier_answers(engine: ExportedModel) -> None:
    pixels, sizes = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96]])
    first = engine.run(pixels, sizes)
    kept = {name: answer.clone() for name, answer in first.items()}
    engine.run(255 - pixels, sizes)
    for name, answer in engine.run(pixels, sizes).items():
        torch.testing.assert_close(answer, kept[name], rtol=0, atol=0)
        torch.testing.assert_close(first[name], kept[name], rtol=0, atol=0)


def test_a_normalised_batch_is_refused(engine: ExportedModel, detector: Detector) -> None:
    picture = Image.effect_noise((96, 64), 80)
    with pytest.raises(ConfigError, match="normalises them itself"):
        engine(ImageBatch.from_images([picture], detector.preprocessing))
    picture.paste(0, (0, 0, 96, 20))  # 0 also where the mean is 0, as that of RT-DETR
    scaled = dataclasses.replace(detector.preprocessing, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    with pytest.raises(ConfigError, match="normalises them itself"):
        engine(ImageBatch.from_images([picture], scaled))
    assert engine(ImageBatch.from_images([picture], engine.preprocessing)).layers[-1].boxes.shape == (1, 8, 4)


def test_the_detector_is_left_as_it_was(
    detector: Detector, exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (written,) = exported("onnx").files
    monkeypatch.setattr(onnx, "convert", lambda *_: None)
    monkeypatch.setattr(onnx, "write", lambda model, path, card: shutil.copy(written, path))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    detector.train()
    export(detector, tmp_path / "deep" / "model.onnx", to="onnx", size=(64, 96))  # which is traced faster
    assert detector.training
    detector.eval()
    after = detector.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {"to": "openvino"}, r"expected the suffix \.xml for openvino"),
        ("a.onnx", {"to": "onnx", "precision": "bf16"}, "only openvino supports it"),
        ("a.xml", {"to": "openvino", "precision": "fp16"}, "only onnx supports it"),
        ("a.xml", {"to": "openvino", "precision": "int8"}, "requires calibration data"),
    ],
)
def test_arguments_that_do_not_fit(
    detector: Detector, tmp_path: Path, name: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(detector, tmp_path / name, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "native", "expected"),
    [("openvino", True, "bf16"), ("openvino", False, "float32"), ("onnx", True, "float32")],
)
def test_auto_is_bf16_where_the_format_has_it_and_the_cpu_computes_it(
    to: Format, native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "is_native", lambda *_: native)
    assert exported_precision("auto", to) == expected
    assert exported_precision("int8", to) == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "tensorrt"}, "got to='tensorrt'; expected one of 'onnx', 'openvino', 'torch'"),
        (
            {"to": "openvino", "precision": "fp64"},
            "got precision='fp64'; expected one of 'auto', 'float32', 'bf16', 'fp16', 'int8'",
        ),
    ],
)
def test_values_that_do_not_exist(
    detector: Detector, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        unwrap(export)(detector, tmp_path / "a.xml", **options)
    assert not list(tmp_path.iterdir())


def test_only_a_detector_can_be_exported(detector: Detector, exported: Export, tmp_path: Path) -> None:
    for model in (detector.optimize(), load_exported(exported("onnx").files[0])):
        with pytest.raises(
            ConfigError, match=f"type {type(model).__name__}; expected a Detector: pass the one"
        ):
            unwrap(export)(model, tmp_path / "a.onnx", to="onnx")  # without the type checks under test
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are listed by Linux")
def test_a_file_is_moved_once_it_is_no_longer_mapped(
    detector: Detector,
    program: ExportedProgram,
    exported: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows refuses to move a file that is mapped into memory, as weights that OpenVINO reads by itself are."""
    from openvino import Core

    model = Core().read_model(exported("openvino").files[0])
    monkeypatch.setattr(write, "trace", lambda *_, **__: program)
    monkeypatch.setattr(openvino, "convert", lambda *_: model)
    real, mapped = Path.replace, {}

    def replace(self: Path, target: Path) -> Path:
        mapped[self.name] = str(self) in Path("/proc/self/maps").read_text(encoding="utf-8")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    export(detector, tmp_path / "a.xml", to="openvino")
    assert mapped == {"a.bin": False, "a.xml": False}


def test_a_refusal_is_told_although_the_file_cannot_be_removed(
    detector: Detector, program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to remove a file that is mapped into memory, as it is by the model that is refused."""

    def refuse(_: ExportedProgram, path: Path, *__: Any) -> None:
        path.touch()
        raise ExportError("the exported model differs")

    def unlink(path: str, **_: Any) -> None:
        raise PermissionError(13, "used by another process", path)

    monkeypatch.setattr(write, "trace", lambda *_, **__: program)
    monkeypatch.setattr(write, "write_verified", refuse)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(ExportError, match="differs"):
        export(detector, tmp_path / "a.onnx", to="onnx")
    assert not (tmp_path / "a.onnx").exists()
