"""The fastest engine is found, and none that answers differently."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from comparisons import assert_same_detections
from torch import Tensor

from querybox.cli import main
from querybox.detector import Detector
from querybox.errors import ConfigError, MissingExtraError
from querybox.exporting import ExportedModel
from querybox.exporting.card import ExportedPrecision
from querybox.inference.detections import Detections
from querybox.structures import Category, Preprocessing
from querybox.tuning import search
from querybox.tuning.choice import Candidate, load_tuned, recall
from querybox.tuning.search import (
    Bench,
    Measurement,
    candidates,
    fastest,
    given_candidate,
    largest_differences,
    restoring_threads,
    thread_counts,
    tune,
)

CATEGORIES = (Category(id=1, name="cat"), Category(id=2, name="dog"))
PICTURE = next((Path(__file__).parents[2] / "examples" / "blood_cells" / "images").glob("*.jpg"))
ONE = Candidate(engine="torch", threads=1)


def detections(scores: Sequence[float], labels: Sequence[int], left: Sequence[float]) -> Detections:
    """Return detections in an image of 50 x 100 pixels with boxes of 10 x 10 pixels."""
    corners: Tensor = torch.tensor([[x, 5.0, x + 10, 15.0] for x in left])
    return Detections(
        boxes_xyxy=corners,
        scores=torch.tensor(scores),
        labels=torch.tensor(labels),
        categories=CATEGORIES,
        size=(50, 100),
        source="",
    )


def test_differences_are_those_of_the_closest_detections() -> None:
    expected = detections([0.9, 0.5], [0, 1], [10.0, 60.0])
    assert largest_differences(expected, expected) == (0.0, 0.0)
    exchanged = detections([0.52, 0.9, 0.1], [1, 0, 0], [63.0, 10.0, 0.0])
    assert largest_differences(expected, exchanged) == pytest.approx((0.02, 0.03))  # 3 of 100 pixels
    other_class = detections([0.9, 0.5], [0, 0], [10.0, 60.0])
    assert largest_differences(expected, other_class) == (1.0, 1.0)


def test_only_the_best_detections_count() -> None:
    scores, left = [1 - 0.01 * place for place in range(20)], [float(place) for place in range(20)]
    expected = detections(scores, [0] * 20, left)
    assert largest_differences(expected, detections(scores[:10], [0] * 10, left[:10])) == (0.0, 0.0)


def test_another_engine_has_to_be_faster_by_more_than_noise() -> None:
    first = Measurement(candidate=ONE, seconds=1.0, ratio=1.0)
    slightly = Measurement(candidate=replace(ONE, threads=2), seconds=0.97, ratio=1.03)
    much = Measurement(candidate=replace(ONE, threads=3), seconds=0.5, ratio=2.0)
    wrong = Measurement(
        candidate=replace(ONE, threads=4), seconds=0.1, ratio=10.0, note="its detections differ"
    )
    absent = Measurement(candidate=replace(ONE, threads=5), note="not installed")
    assert fastest([first, slightly, wrong, absent]) is first
    assert fastest([first, slightly, wrong, much, absent]) is much


def test_threads_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, expected in ((1, [1]), (6, [6, 3, 1]), (16, [16, 8, 4, 2, 1])):
        monkeypatch.setattr(search, "available_cpus", lambda cpus=cpus: cpus)
        assert thread_counts() == expected


def test_a_cache_folder_that_cannot_be_written_to_is_named_first(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(search, "Bench", None)  # nothing is measured
    with pytest.raises(ConfigError, match=r"file.querybox: cannot be written to .*; set XDG_CACHE_HOME"):
        tune(weights)


def test_exported_models_run_on_cpus_alone(tmp_path: Path) -> None:
    names = [str(each) for each in candidates(torch.device("cpu"), tmp_path, 2)]
    assert names == [
        "PyTorch, float32, 2 threads",
        "PyTorch, bf16, 2 threads",
        "ONNX Runtime, float32, 2 threads",
        "OpenVINO, float32, 2 threads",
        "OpenVINO, bf16, 2 threads",
    ]
    assert [each.engine for each in candidates(torch.device("cuda"), tmp_path, 2)] == ["torch", "torch"]


@pytest.mark.usefixtures("cache")
def test_what_cannot_be_run_is_named_and_not_chosen(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingExtraError("needs the package openvino")

    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(search, "export", missing)
    monkeypatch.setattr(search, "is_native", lambda *_: False)
    monkeypatch.setattr(search, "thread_counts", lambda: [1, 2])
    torch.set_num_threads(1)
    stages: list[str] = []
    done = tune(weights, size=(64, 96), callback=stages.append)
    assert torch.get_num_threads() == 1
    assert [each.note for each in done.measurements] == [
        "",
        "this device does not compute bf16 natively",
        *["needs the package openvino"] * 2,
        "this device does not compute bf16 natively",
        "",
    ]
    default, other = done.measurements[0], done.measurements[-1]
    assert (default.candidate, default.ratio) == (ONE, 1.0)
    assert default.scores == pytest.approx(0, abs=1e-4)
    assert other.candidate.threads == 2
    assert done.choice == recall(weights)
    assert done.choice.candidate in (ONE, other.candidate)
    assert done.choice.size == (64, 96)
    assert "measuring, 0 of 0 s" in stages


def test_an_exported_model_is_chosen_and_loaded(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_openvino(_: torch.device, drafts: Path, threads: int) -> list[Candidate]:
        file = drafts / "float32.xml"
        return [ONE, Candidate(engine="openvino", threads=threads, file=file)]

    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(search, "thread_counts", lambda: [1])
    monkeypatch.setattr(search, "candidates", only_openvino)
    monkeypatch.setattr(search, "fastest", lambda measurements: measurements[-1])
    detector = Detector.load(weights)
    detector.preprocessing = Preprocessing(short_side=64, long_side=64, resizing="stretch")
    detector.save(weights)
    done = tune(weights)
    assert done.measurements[1].scores == pytest.approx(0, abs=1e-4)
    file = done.choice.candidate.file
    assert file is not None
    assert file.parent.parent == cache
    with restoring_threads():
        engine = load_tuned(weights)
        assert isinstance(engine, ExportedModel)
        assert engine.card.size == (64, 64)
        image = torch.randint(256, (3, 40, 60), dtype=torch.uint8)
        (found,), (expected,) = engine.predict(image, threshold=0), detector.predict(image, threshold=0)
    assert_same_detections(found, expected)
    with pytest.raises(
        ConfigError, match="has other classes than the first model, or resizes images in another"
    ):
        given_candidate(file, Detector.from_recipe("detr_r18", num_classes=2, backbone="test_resnet"), 1)
    assert given_candidate(file, detector, 3) == Candidate(engine="openvino", threads=3, file=file)
    with pytest.raises(ConfigError, match="--tune got a file of this kind; expected"):
        given_candidate(weights, detector, 1)


def test_an_interruption_is_told_although_files_cannot_be_removed(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to remove files that are mapped into memory, as they are by the engines that are measured."""

    def interrupted(_: search.Bench, candidates: Sequence[Candidate]) -> list[Measurement]:
        assert candidates[-1].file is not None
        candidates[-1].file.touch()
        raise KeyboardInterrupt

    def unlink(path: str, **_: Any) -> None:
        raise PermissionError(13, "used by another process", path)

    monkeypatch.setattr(search.Bench, "measure", interrupted)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        tune(weights, size=(64, 96))


@pytest.mark.usefixtures("one_thread")
def test_the_command_tunes_and_predict_follows(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(weights), str(PICTURE), "--output", str(tmp_path / "out")]
    words += ["--threshold", "0", "--format", "csv"]
    assert main(["predict", *words, "--tuned"]) == 2
    assert f"has not been tuned on this machine: run querybox benchmark {weights} --tune" in (
        capsys.readouterr().err
    )
    assert main(["benchmark", str(weights), "--tune", "--size", "64x96"]) == 0
    shown = capsys.readouterr().out
    assert "one image of 64x96" in shown
    assert f"Chosen: {ONE}. Use it: querybox predict {weights} IMAGES --tuned" in " ".join(shown.split())
    assert main(["predict", *words, "--tuned"]) == 0
    assert f"{weights}: runs with {ONE}, as tuned for 64x96 pixels" in capsys.readouterr().err
    assert main(["benchmark", str(weights), "--tune", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choice"]["candidate"] == {
        "engine": "torch",
        "precision": "float32",
        "threads": 1,
        "file": None,
    }


@pytest.mark.parametrize("precision", get_args(ExportedPrecision))
def test_a_file_of_any_precision_is_measured(
    weights: Path, monkeypatch: pytest.MonkeyPatch, precision: ExportedPrecision
) -> None:
    monkeypatch.setattr(search, "SECONDS", 0.0)
    bench = Bench(Detector.load(weights), (64, 96), lambda _: None)
    monkeypatch.setattr(bench, "build", lambda _: bench.detector)
    file = Candidate(engine="onnx", precision=precision, threads=1, file=Path("a.onnx"))
    (found,) = bench.measure([file])
    assert (found.note, found.scores, found.boxes) == ("", 0, 0)


def test_options_that_contradict_tuning(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(weights), "--tune", "--batch-size", "2"]) == 2
    assert "querybox benchmark: --batch-size has no effect with --tune" in capsys.readouterr().err
    assert main(["benchmark", str(weights), "--tune", "--trust"]) == 2
    assert "querybox benchmark: --trust has no effect with --tune" in capsys.readouterr().err
    for size, message in (
        ("0x0", "tune got size=0; expected an integer, 1 to"),
        ("100000x100000", "tune got size=(100000, 100000); expected at most"),
        (f"{'9' * 5000}x1", "expected height x width in pixels"),
    ):
        assert main(["benchmark", str(weights), "--tune", "--size", size]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(weights), str(PICTURE), "--tuned", "--precision", "bf16"]) == 2
    assert "--tuned got --precision bf16; expected a checkpoint without" in capsys.readouterr().err
