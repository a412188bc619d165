from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from querybox import precision


def test_prints_tables_and_writes_files(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, photos, "--split", "val", "--output", "scores")
    assert (code, err) == (0, "")
    assert "2 objects in 2 images" in out
    assert all(name in out for name in ("AP50", "AR100", "cat", "dog", "Results are in scores"))
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert f"{metrics['metrics']['AP']:.3f}" in out
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert len(results) == metrics["detections"] == 16
    assert {result["category_id"] for result in results} <= {3, 9}
    assert sum(metrics["mistakes"]["misses"].values()) <= metrics["objects"]
    assert re.search(rf"duplicate *│ *│ *{metrics['mistakes']['false_alarms']['duplicate']} │", out)
    assert "<html" in (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")


def test_with_tiles(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    words = ("--split", "val", "--tile", "32", "--overlap", "0.3", "--inspect", "1")
    code, out, err = run("evaluate", model, photos, *words)
    assert (code, err) == (0, "")
    assert "without inspector pages; evaluate a checkpoint in float32, without tiles, for these" in out
    assert not (tmp_path / "evaluation" / "inspect").exists()
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["detections"] > 16  # without tiles


def test_worst_images_with_pages_to_look_inside(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("evaluate", model, photos, "--split", "val", "--inspect", "1")
    assert (code, err) == (0, "")
    assert "cannot be inspected" not in out
    assert [page.name for page in (tmp_path / "evaluation" / "inspect").iterdir()] == ["worst_01.html"]
    report = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert '<a href="inspect/worst_01.html">' in report


def test_what_does_not_tell_where_it_looked_has_no_pages(
    run: Any, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda *_: True)
    words = ("--split", "val", "--precision", "bf16", "--inspect", "2")
    code, out, err = run("evaluate", model, photos, *words)
    assert (code, err) == (0, "")
    assert "model.safetensors cannot be inspected: the report shows the worst images without" in out
    assert not (tmp_path / "evaluation" / "inspect").exists()
    assert "Worst images" in (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "native"), [("bf16", True), ("auto", True), ("auto", False)])
def test_in_half_precision(
    run: Any,
    model: Path,
    photos: Path,
    tmp_path: Path,
    name: str,
    native: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda name, _: native or name == "float32")
    words = ("--split", "val", "--precision", name, "--inspect", "1")
    code, out, err = run("evaluate", model, photos, *words)
    assert (code, err) == (0, "")
    assert "2 objects in 2 images" in out
    assert (
        tmp_path / "evaluation" / "inspect"
    ).exists() is not native  # only a detector in float32 has pages


def test_emulated_precision_is_told(
    run: Any, model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "is_native", lambda *_: False)
    monkeypatch.setattr(precision, "slowdown", lambda *_: 5.9)
    code, _, err = run("predict", model, photos / "images" / "val1.jpg", "--precision", "bf16")
    assert code == 0
    assert "precision 'bf16' is emulated on this device" in err
    assert "a matrix product takes 5.9 times as long as in float32" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.safetensors", "PHOTOS"], "CheckpointError: missing.safetensors: no such weights file"),
        (["MODEL", "missing"], "DataError: missing: no such file or folder"),
        (["model.onnx", "PHOTOS", "--precision", "fp16"], "omit --precision"),
        (["MODEL", "PHOTOS"], "has several splits"),
        (["MODEL", "PHOTOS", "--inspect", "-1"], "--inspect got -1; expected a number of images, 0 or more"),
        (["MODEL", "PHOTOS", "--split", "dev"], "has no split 'dev'"),
        (["MODEL", "broken.json"], "broken.json"),
        (["model.onnx", "PHOTOS", "--precision", "bf16"], "omit --precision"),
        (
            ["MODEL", "PHOTOS", "--split", "val", "--output", "renamed.json"],
            "renamed.json: the folder cannot be created (File exists); expected a folder to write to",
        ),
        (["MODEL", "renamed.json"], "ConfigError: the detector's 2 classes differ from the data's 2"),
    ],
)
def test_bad_input_is_told_in_one_line(
    run: Any, model: Path, photos: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    text = (photos / "annotations" / "val.json").read_text()
    (tmp_path / "broken.json").write_text(text[:-10])
    (tmp_path / "renamed.json").write_text(text.replace('"cat"', '"kitten"'))
    shutil.copytree(photos / "images", tmp_path / "images")
    names = {"MODEL": model, "PHOTOS": photos}
    code, out, err = run("evaluate", *(names.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "evaluation").exists()


def test_arguments_in_the_wrong_order_are_recognised(run: Any, model: Path, photos: Path) -> None:
    for command in ("evaluate", "queries"):
        code, out, err = run(command, photos, model)
        assert (code, out) == (2, "")
        assert (
            f"{photos}: is not a model, but {model} is; the model comes first: querybox {command} {model}"
            in err
        )


def test_only_files_of_an_evaluation_are_overwritten_and_none_of_them_stays_beside_newer_ones(
    run: Any, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", model, photos, "--split", "val", "--output")
    for name, message in (
        ("results.json", "exists, and is not of an evaluation, which has a report.html beside it"),
        ("report.html", "exists, and was not written by querybox"),
    ):
        (tmp_path / name).write_text("theirs")
        code, _, err = run(*words, ".")
        assert code == 2
        assert f"ConfigError: {name}: {message}" in err
        assert (tmp_path / name).read_text() == "theirs"
        (tmp_path / name).unlink()
    assert run(*words, "again")[0] == 0
    monkeypatch.setattr("querybox.report.write_report", mock.Mock(side_effect=KeyboardInterrupt))
    assert run(*words, "again")[0] == 130
    assert not list((tmp_path / "again").iterdir())
