"""Reading run folders: whole ones, old ones, those of others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_records import RECORD, make_run, write_run

from querybox.diagnosis import diagnose
from querybox.diagnosis.diagnose import examine
from querybox.diagnosis.record import add_to_record, read_record
from querybox.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a good run."""
    return write_run(tmp_path)


def test_a_good_run(folder: Path) -> None:
    diagnosis = diagnose(folder)
    assert diagnosis.findings == ()
    assert diagnosis.missing == ()
    assert (diagnosis.AP, diagnosis.AP50) == (0.18, 0.72)
    assert (diagnosis.epochs, diagnosis.steps, diagnosis.ended) == (9, 9000, "epochs")
    assert read_record(folder) == RECORD


def test_findings_are_sorted(folder: Path) -> None:
    training = dataclasses.replace(RECORD.training, faulty_boxes=500, repeated_objects=100)  # type: ignore[type-var]
    add_to_record(folder, training=training)
    findings = diagnose(str(folder)).findings
    assert [finding.name for finding in findings] == ["faulty_boxes", "repeated_objects"]
    assert findings[0].explains > findings[1].explains


def test_the_run_of_an_older_version_says_what_it_lacks(folder: Path) -> None:
    (folder / "record.json").unlink()
    diagnosis = diagnose(folder)
    assert diagnosis.findings == ()
    assert "no record.json" in diagnosis.missing[0]


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        ({"evaluation": None}, "not been evaluated yet"),
        ({"evaluation": None, "validation": None}, "no validation data"),
    ],
)
def test_what_a_run_did_not_measure(folder: Path, facts: dict[str, Any], missing: str) -> None:
    add_to_record(folder, **facts)
    assert missing in diagnose(folder).missing[0]


def test_a_run_that_has_just_begun(folder: Path) -> None:
    (folder / "metrics.csv").unlink()
    add_to_record(folder, evaluation=None, ended=None)
    diagnosis = diagnose(folder)
    assert diagnosis.findings == ()
    assert diagnosis.AP is None
    assert diagnosis.steps == 0
    assert len(diagnosis.missing) == 2


def test_no_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no run.yaml; expected the folder of a training run"):
        diagnose(tmp_path / "elsewhere")
    (folder / "run.yaml").write_text("data: {train: data}\n")
    with pytest.raises(
        ConfigError, match="setting 'train' is missing; expected a file written by a training run"
    ):
        diagnose(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"ended": 5}', '{"training": {"images": 3}}', "\x00"])
def test_a_damaged_record_is_told(folder: Path, text: str) -> None:
    (folder / "record.json").write_text(text)
    with pytest.raises(DataError, match=r"record.json: .*; expected the record of a run: remove the file"):
        diagnose(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"median_size": 90.0', '"median_size": 0'),
        ('"images": 200', '"images": 0'),
        ('"objects": 60', '"objects": 0'),
        ('"best_iou": 0.75', '"best_iou": NaN'),
    ],
)
def test_impossible_numbers_of_a_record_are_told(folder: Path, before: str, after: str) -> None:
    text = (folder / "record.json").read_text()
    assert before in text
    (folder / "record.json").write_text(text.replace(before, after))
    field = after.split('"')[1]
    with pytest.raises(DataError, match=rf"record.json: .*{field}: .*; expected the record of a run"):
        diagnose(folder)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b",", b";"),  # saved by a spreadsheet
        (b"epoch", b"\xef\xbb\xbfepoch"),  # and this
        (b"\n9,9000.0", b"\n9,"),
        (b"9000.0", b"many"),
        (b"step", b"\xff"),
    ],
)
def test_damaged_metrics_are_told(folder: Path, before: bytes, after: bytes) -> None:
    content = (folder / "metrics.csv").read_bytes().replace(b"\r", b"").replace(b"\n9.0,", b"\n9,")
    assert before in content
    (folder / "metrics.csv").write_bytes(content.replace(before, after))
    with pytest.raises(DataError, match=r"metrics.csv: is corrupt .*; expected .*: resume the run"):
        diagnose(folder)


def test_the_record_is_plain_json(folder: Path) -> None:
    values = json.loads((folder / "record.json").read_text())
    assert values["training"]["objects"] == {"cat": 600, "dog": 400}
    assert values["evaluation"]["classes"][0]["name"] == "cat"


def test_epochs_are_planned_where_time_is_not() -> None:
    short = {"epoch": [1.0], "step": [30.0], "AP": [0.0], "AP50": [0.0], "loss": [30.0], "loss_iou": [1.5]}
    for limit, planned in ((None, 9), (60.0, None)):
        found = {finding.name: finding for finding in examine(make_run(history=short, max_time=limit))}
        assert found["too_few_steps"].evidence.get("planned epochs") == planned
