"""What was found is kept for each model, and used only where it still holds."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import pytest
import torch

from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.tuning import choice as module
from querybox.tuning.choice import Candidate, digest_of, load_tuned, recall, remember
from querybox.tuning.machine import Machine
from querybox.tuning.search import restoring_threads

SIZE = (64, 85)


def exported(drafts: Path) -> Candidate:
    """Return a candidate with files of an exported model in a new folder."""
    drafts.mkdir()
    for suffix in ("xml", "bin"):
        (drafts / f"float32.{suffix}").write_text(f"the {suffix}")
    return Candidate(engine="openvino", threads=3, file=drafts / "float32.xml")


def test_a_choice_is_read_as_it_was_written(weights: Path, tmp_path: Path, cache: Path) -> None:
    written = remember(exported(tmp_path / "drafts"), SIZE, weights, tmp_path / "drafts")
    folder = cache / digest_of(weights)
    assert recall(weights) == written
    assert written.candidate == Candidate(engine="openvino", threads=3, file=folder / "float32.xml")
    assert {path.name for path in folder.iterdir()} == {"choice.json", "float32.xml", "float32.bin"}
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path / "drafts")
    assert [path.name for path in folder.iterdir()] == [
        "choice.json"
    ]  # the files of the former choice are gone


def test_a_file_of_the_user_stays_where_it_is(weights: Path, tmp_path: Path, cache: Path) -> None:
    remember(exported(tmp_path / "mine"), SIZE, weights, tmp_path / "drafts")
    assert recall(weights).candidate.file == tmp_path / "mine" / "float32.xml"
    assert [path.name for path in (cache / digest_of(weights)).iterdir()] == ["choice.json"]
    (tmp_path / "mine" / "float32.bin").write_text("other weights")
    with pytest.raises(ConfigError, match=r"float32.xml: is missing, or not the file .* --tune again"):
        recall(weights)
    (tmp_path / "mine" / "float32.bin").unlink()
    with pytest.raises(ConfigError, match=r"float32.xml: is missing, or not the file"):
        recall(weights)


def test_a_choice_holds_for_one_machine_and_its_versions(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"has not been tuned .* querybox benchmark .*model.safetensors --tune"
    ):
        recall(weights)
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path)
    before = Machine.here()
    other = dataclasses.replace(before, cores=2, packages={"torch": "2.9", "openvino": None})
    monkeypatch.setattr(Machine, "here", lambda: other)
    with pytest.raises(ConfigError, match="tuned with another number of cores, version of torch: run"):
        recall(weights)


def test_another_model_has_another_choice(weights: Path, tmp_path: Path) -> None:
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path)
    weights.write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="has not been tuned"):
        recall(weights)


@pytest.mark.parametrize("content", ["{", '{"candidate": {"engine": "tensorrt"}}'])
def test_a_corrupt_choice_is_an_error(weights: Path, tmp_path: Path, cache: Path, content: str) -> None:
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path)
    (cache / digest_of(weights) / "choice.json").write_text(content)
    with pytest.raises(ConfigError, match=r"choice.json: corrupt \(.*--tune again"):
        recall(weights)


def test_the_cache_is_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODELS", 2)
    models = [tmp_path / name for name in ("first", "second", "third")]
    old, new = cache / ".drafts-old", cache / ".drafts-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (0, 0))
    for age, model in zip((3, 2, 1), models, strict=True):
        model.write_text(model.name)
        remember(Candidate(engine="torch", threads=age), SIZE, model, tmp_path)
        os.utime(cache / digest_of(model) / "choice.json", (1e9 - age, 1e9 - age))
    assert {path.name for path in cache.iterdir()} == {
        ".drafts-new",
        *(digest_of(each) for each in models[1:]),
    }


def test_a_tuned_model_is_loaded_and_named(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remember(Candidate(engine="torch", precision="bf16", threads=2), SIZE, weights, tmp_path)
    with restoring_threads(), caplog.at_level(logging.INFO, "querybox"):
        engine = load_tuned(weights)
        assert torch.get_num_threads() == 2
    assert getattr(engine, "dtype", None) == torch.bfloat16
    assert caplog.messages[-1] == f"{weights}: runs with PyTorch, bf16, 2 threads, as tuned for 64x85 pixels"
    remember(Candidate(engine="torch", threads=1), SIZE, weights, tmp_path)
    with restoring_threads():
        assert isinstance(load_tuned(weights), Detector)
