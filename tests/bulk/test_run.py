from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from shards import jpeg

from querybox.bulk.parts import divide
from querybox.bulk.run import PLAN, cause, prepare
from querybox.cli.collection import model_digest
from querybox.errors import CheckpointError, ConfigError, DataError, PredictionError
from querybox.temporary import temporary_name

SETTINGS: dict[str, Any] = {"model": "a" * 64, "threshold": 0.5}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(jpeg())
    return folder


def test_what_is_done_is_told_by_the_files(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    collection = prepare(["photos"], "found", SETTINGS)
    assert collection.output == str(tmp_path / "found")
    assert collection.left() == list(collection.parts)
    (tmp_path / "found" / "part-00000001.parquet").write_bytes(b"")
    for process in (os.getpid(), os.getppid()):  # one that was killed while it wrote, and one that writes
        (tmp_path / "found" / temporary_name(process)).mkdir()
    again = prepare([str(photos)], "found", SETTINGS)
    assert [part.number for part in again.left()] == [0, 2]
    with pytest.raises(
        DataError, match=r"found.part-00000001\.parquet: cannot be read as Parquet .* remove it, and"
    ):
        again.count_others(again.left())
    assert again.count_others(again.parts) == {}
    again.remove_leftovers()
    (writing,) = (tmp_path / "found").glob(".*")
    assert str(os.getppid()) in writing.name


def test_a_pattern_may_match_the_results(photos: Path, tmp_path: Path) -> None:
    """Such a collection could not be continued, because its own results were among its sources."""
    sources, output = [f"{tmp_path}/**/*"], str(photos / ".." / "found")
    collection = prepare(sources, output, SETTINGS)
    (tmp_path / "found" / collection.parts[0].file_name).write_bytes(b"")
    again = prepare(sources, output, SETTINGS)
    assert again == collection
    assert len(again.left()) == 2
    with pytest.raises(DataError, match="found nothing but results; expected images"):
        prepare([f"{tmp_path}/found/*"], output, SETTINGS)
    (tmp_path / "found" / "part-1.parquet").write_bytes(b"")  # not a result by its name
    assert [len(part.places) for part in divide(sources, output)] == [1, 1, 1, 1]


def test_a_model_is_all_files_that_it_is_read_from(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    (tmp_path / "1.safetensors").write_text("a shard")
    before = model_digest(index)
    assert before == model_digest(tmp_path)
    (tmp_path / "1.safetensors").write_text("another shard, which the index does not tell from the first")
    assert model_digest(index) != before


def test_results_of_other_images_or_settings_are_not_mixed(photos: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "found")
    prepare([str(photos)], output, SETTINGS)
    with pytest.raises(
        ConfigError, match=r"found: has results of .*: threshold was 0\.5 and is 0\.4; repeat the"
    ):
        prepare([str(photos)], output, {**SETTINGS, "threshold": 0.4})
    (photos / "3.jpg").write_bytes(jpeg())
    with pytest.raises(
        ConfigError, match="has results of other images or settings: files was 3 and is 4, sources was"
    ):
        prepare([str(photos)], output, SETTINGS)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 10**5, b"\xff"])
def test_a_plan_that_cannot_be_read_is_an_error(photos: Path, tmp_path: Path, content: bytes) -> None:
    prepare([str(photos)], str(tmp_path / "found"), SETTINGS)
    (tmp_path / "found" / PLAN).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read as a plan of querybox; set another --output"):
        prepare([str(photos)], str(tmp_path / "found"), SETTINGS)


def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"photos: the folder is not empty \(0\.jpg, 1\.jpg, 2\.jpg\)"):
        prepare([str(photos)], str(photos), SETTINGS)
    assert sorted(path.name for path in photos.iterdir()) == ["0.jpg", "1.jpg", "2.jpg"]


def test_the_plan_can_be_read(photos: Path, tmp_path: Path) -> None:
    prepare([str(photos)], str(tmp_path / "found"), SETTINGS)
    plan = json.loads((tmp_path / "found" / PLAN).read_text())
    assert set(plan) == {"model", "threshold", "files", "sources", "parts"}
    assert (plan["files"], plan["parts"]) == (3, 3)


def test_the_error_of_a_worker_is_found() -> None:
    outer = RuntimeError("an actor died")
    outer.__cause__ = CheckpointError("model.onnx: no such file")
    assert type(cause(outer)) is CheckpointError
    assert str(cause(outer)) == "model.onnx: no such file"
    assert type(cause(RuntimeError("an actor died"))) is PredictionError
