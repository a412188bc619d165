from __future__ import annotations

import dataclasses
from pathlib import Path

from run_records import SPLIT, write_run

from querybox.diagnosis.record import add_to_record
from querybox.report.diagnosis import diagnosis_section


def test_findings_are_tabulated_and_escaped(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    validation = dataclasses.replace(SPLIT, objects={"cat": 600, "dog": 400, "<b>owl": 200})
    add_to_record(folder, validation=validation)
    text = diagnosis_section(folder)
    assert "No training image has an object of: &lt;b&gt;owl. (data)" in text
    assert "in the validation data: 200" in text
    assert "Draw the split anew" in text


def test_a_good_run_is_told_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    assert "Nothing is wrong that the run&#x27;s record shows." in diagnosis_section(folder)
    add_to_record(folder, evaluation=None)
    assert "Not looked at: the run has not been evaluated yet" in diagnosis_section(folder)


def test_a_folder_without_a_record_gets_no_section(tmp_path: Path) -> None:
    assert diagnosis_section(tmp_path) == ""
