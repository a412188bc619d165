"""One door in: whatever a model is in, `querybox.load` opens it; whatever runs it, `predict` is the same."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TINY

import querybox as qb
from querybox.checkpoints import native
from querybox.errors import CheckpointError, ConfigError
from querybox.exporting import ExportedModel
from querybox.inference.optimized import OptimizedDetector
from querybox.models.layouts.facebook import FACEBOOK
from querybox.structures import Category


@pytest.fixture
def detector() -> qb.Detector:
    torch.manual_seed(0)
    return qb.Detector.from_recipe("detr_r50", categories=[Category(id=7, name="cat")], **TINY).eval()


def test_a_file_a_run_folder_and_its_checkpoint(detector: qb.Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "last.safetensors")
    for path in (tmp_path / "last.safetensors", tmp_path, str(tmp_path)):
        loaded = qb.load(path)
        assert isinstance(loaded, qb.Detector)
        assert loaded.categories == detector.categories
    changed = qb.Detector.from_recipe("detr_r50", num_classes=3, **TINY)
    changed.save(tmp_path / "best.safetensors")
    assert len(qb.load(tmp_path).categories) == 3  # the best is preferred


def test_a_foreign_checkpoint(tmp_path: Path) -> None:
    detector = qb.Detector.from_recipe("detr_r18", num_classes=3, **{**TINY, "backbone": "resnet18.tv_in1k"})
    torch.save({"model": FACEBOOK.to_theirs(detector.state_dict())}, tmp_path / "foreign.pth")
    loaded = qb.load(tmp_path / "foreign.pth")
    assert isinstance(loaded, qb.Detector)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, detector.state_dict()[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run.yaml", "a run file"),
        ("photo.jpg", "an image"),
        ("instances.json", "text, such as annotations"),
        ("model.h5", "a TensorFlow model"),
        ("model.engine", "a TensorRT engine"),
        ("model.mlmodel", "a Core ML model"),
        ("weights.zip", "an archive"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(qb.QueryboxError, match=f"expected a detector's weights .*, got {kind}"):
        qb.load(tmp_path / name)


def test_an_exported_model_is_no_detector(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"content")
    with pytest.raises(qb.QueryboxError, match=r"got an exported model; open it with querybox\.load"):
        qb.Detector.load(tmp_path / "model.onnx")


def test_an_empty_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(qb.QueryboxError, match="holds neither the detector of a run"):
        qb.load(tmp_path)
    with pytest.raises(qb.QueryboxError, match="no such weights file"):
        qb.load(tmp_path / "absent.pth")


def test_predict_has_the_same_arguments_everywhere() -> None:
    functions = (qb.predict, qb.Detector.predict, OptimizedDetector.predict, ExportedModel.predict)
    arguments = [
        [(each.name, each.default) for each in signature(function).parameters.values()][1:]
        for function in functions
    ]
    assert all(each == arguments[0] for each in arguments)
    assert [name for name, _ in arguments[0]] == [
        "sources",
        "threshold",
        "top_k",
        "nms",
        "tile",
        "overlap",
        "track",
        "batch_size",
        "on_error",
    ]


def test_settings_that_the_file_lacks(detector: qb.Detector, tmp_path: Path) -> None:
    resnet = qb.Detector.from_recipe("detr_r18", num_classes=3, **{**TINY, "backbone": "resnet18.tv_in1k"})
    torch.save({"model": FACEBOOK.to_theirs(resnet.state_dict())}, tmp_path / "weights.pth")
    loaded = qb.load(tmp_path / "weights.pth", heads=2)
    assert isinstance(loaded, qb.Detector)
    assert loaded.recipe is not None
    assert loaded.recipe.heads == 2
    detector.save(tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match="got dilation=True, but the file says False"):
        qb.load(tmp_path / "own.safetensors", dilation=True)
    with pytest.raises(
        ConfigError, match="got activation=silu, but the file says relu"
    ):  # as DETR always has
        qb.load(tmp_path / "own.safetensors", activation="silu")
    assert isinstance(qb.load(tmp_path / "own.safetensors", activation="relu"), qb.Detector)
    with pytest.raises(
        ConfigError, match="heads=2 for an exported model, which contains such settings; omit them"
    ):
        qb.load(tmp_path / "model.onnx", heads=2)


def test_the_training_state_of_a_run_is_no_detector(tmp_path: Path) -> None:
    native.write(tmp_path / "checkpoint.safetensors", {"x": torch.zeros(1)}, {}, mark=native.RUN)
    with pytest.raises(CheckpointError, match="got the training state of a run; open its folder, or best"):
        qb.load(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"num_classes": 0}, "got num_classes=0; expected an integer, 1 to 65536"),
        ({"num_classes": -1}, "got num_classes=-1; expected an integer, 1 to 65536"),
        ({"num_classes": 2**40}, "got num_classes=1099511627776; expected an integer, 1 to 65536"),
        (
            {"categories": [str(number) for number in range(2**16 + 1)]},
            "got 65,537 categories; expected at most 65,536",
        ),
        ({"categories": ["a", " "]}, "got ' ' as the name of a class; expected one that is not empty"),
        ({"categories": []}, "got no categories; expected at least one class"),
        ({"categories": [Category(id=1, name="a"), Category(id=1, name="b")]}, r"same id or name \(1\)"),
        ({"categories": [Category(id=1, name="a"), Category(id=2, name="a")]}, r"same id or name \(a\)"),
    ],
)
def test_classes_that_make_no_head(classes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        qb.Detector.from_recipe("detr_r50", **classes, **TINY)
