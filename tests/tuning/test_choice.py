"""What was found is kept for each model, and used only where it still holds."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from querybox.checkpoints.digest import digest_of
from querybox.checkpoints.files import model_files
from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.tuning import choice as module
from querybox.tuning import machine
from querybox.tuning.choice import Candidate, load_tuned, recall, remember
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


def test_the_device_of_a_machine_has_the_name_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of a cluster share the cache folder."""
    monkeypatch.setattr(machine, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    assert machine.device() == "cuda (A100)"
    monkeypatch.setattr(machine, "default_device", lambda: torch.device("cpu"))
    assert machine.device() == "cpu"


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


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 0},
        {"threads": -1},
        {"threads": 10**9},
        {"threads": 10**30},
        {"threads": True},
        {"engine": "onnx"},
        {"precision": "int8"},
        {"file": "model.onnx"},
        {"engine": "onnx", "file": "model.xml"},
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_an_error(
    weights: Path, tmp_path: Path, cache: Path, changes: dict[str, object]
) -> None:
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path)
    file = cache / digest_of(weights) / "choice.json"
    values = json.loads(file.read_text())
    values["candidate"] |= changes
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"choice.json: corrupt \(candidate.*--tune again"):
        load_tuned(weights)


@pytest.mark.parametrize("name", ["a\0.onnx", f"{'a' * 300}.onnx"], ids=["null", "long"])
def test_a_name_that_no_file_can_have_is_a_missing_file(
    weights: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path)
    file = cache / digest_of(weights) / "choice.json"
    values = json.loads(file.read_text())
    values["candidate"] |= {"engine": "onnx", "file": name}
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"is missing, or not the file with which .* --tune again"):
        recall(weights)


def test_whatever_has_the_place_of_a_choice_is_replaced(weights: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    cache.mkdir(parents=True)
    folder = cache / digest_of(weights)
    folder.symlink_to(tmp_path / "elsewhere")
    remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path / "first")
    assert [path.name for path in folder.iterdir()] == ["choice.json"]
    assert (tmp_path / "elsewhere" / "file").exists()
    remember(Candidate(engine="torch", threads=3), SIZE, weights, tmp_path / "second")
    (folder / "choice.json").unlink()
    folder.rmdir()
    folder.write_text("a file")
    assert remember(Candidate(engine="torch", threads=4), SIZE, weights, tmp_path / "third") == recall(
        weights
    )


def test_a_file_of_the_former_choice_may_be_chosen_again(weights: Path, tmp_path: Path) -> None:
    first = remember(exported(tmp_path / "drafts"), SIZE, weights, tmp_path / "drafts")
    second = remember(first.candidate, SIZE, weights, tmp_path / "others")
    assert second == first == recall(weights)


@pytest.mark.parametrize("windows", [False, True])
def test_two_processes_may_choose_at_the_same_time(
    windows: bool, weights: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, others, real = module.remove, iter(range(1)), Path.replace

    def replace(path: Path, target: Path) -> Path:
        if windows and target.is_dir():
            raise PermissionError(13, "Access is denied", str(path), None, str(target))
        return real(path, target)

    def remove_then_be_overtaken(path: Path) -> None:
        remove(path)
        for _ in others:
            remember(Candidate(engine="torch", threads=3), SIZE, weights, tmp_path / "other")

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(module, "remove", remove_then_be_overtaken)
    mine = remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path / "mine")
    assert recall(weights) == mine
    assert len(list(cache.iterdir())) == 1


def test_a_choice_that_cannot_be_replaced_is_an_error(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows an exported model is open as long as a server runs it."""
    first = remember(Candidate(engine="torch", threads=3), SIZE, weights, tmp_path / "first")
    monkeypatch.setattr(module, "remove", lambda _: None)
    with pytest.raises(OSError, match=r"not empty|Access is denied|exists"):
        remember(Candidate(engine="torch", threads=2), SIZE, weights, tmp_path / "second")
    assert recall(weights) == first


def test_a_choice_is_that_of_all_files_of_a_model(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.bin"}}))
    names = ["1.safetensors", "2.bin", "config.json", "preprocessor_config.json"]
    for name in names:
        (tmp_path / name).write_text(f"the {name}")
    assert model_files(index) == [index, *(tmp_path / name for name in names)]
    for name in names:
        remember(Candidate(engine="torch", threads=2), SIZE, index, tmp_path / f"drafts {name}")
        recall(index)
        (tmp_path / name).write_text("another one")
        with pytest.raises(ConfigError, match="has not been tuned"):
            recall(index)


def test_the_cache_is_bounded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MODELS", 2)
    models = [tmp_path / name for name in ("first", "second", "third")]
    for age, model in zip((3, 2, 1), models, strict=True):
        model.write_text(model.name)
        remember(Candidate(engine="torch", threads=age), SIZE, model, tmp_path)
        os.utime(cache / digest_of(model) / "choice.json", (1e9 - age, 1e9 - age))
    assert {path.name for path in cache.iterdir()} == {digest_of(each) for each in models[1:]}


def test_a_tuned_model_is_loaded_and_named(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remember(Candidate(engine="torch", precision="bf16", threads=2), SIZE, weights, tmp_path)
    with restoring_threads(), caplog.at_level(logging.INFO, "querybox"):
        engine = load_tuned(weights)
        assert torch.get_num_threads() == 2
    assert getattr(engine, "dtype", None) == torch.bfloat16
    # Where bf16 is emulated, a warning says so, too.
    assert f"{weights}: runs with PyTorch, bf16, 2 threads, as tuned for 64x85 pixels" in caplog.messages
    remember(Candidate(engine="torch", threads=1), SIZE, weights, tmp_path)
    with restoring_threads():
        assert isinstance(load_tuned(weights), Detector)
