from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_records import make_run

from querybox.diagnosis.run import Run


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any folder that of a run with a learning rate that is far too high."""
    run = make_run(lr=0.1, history={"loss": [40.0] * 9, "loss_iou": [4.0] * 9, "AP50": [0.0] * 9})
    monkeypatch.setattr(Run, "read", lambda _: run)


@pytest.mark.usefixtures("broken")
def test_tells_cause_evidence_and_cure(run: Any) -> None:
    code, out, err = run("diagnose", "runs/mine")
    assert (code, err) == (0, "")
    assert "runs/mine: AP 0.180, AP50 0.000 after 9,000 steps, 9 epochs (ended: epochs)" in out
    assert "1. The learning rate is too high: at train.lr=0.1 " in out
    assert "[schedule]" in out
    assert "relative change of weights per step  2\n" in out
    assert "Cure: Set train.lr=0.0002, and train.warmup_steps=100." in out


@pytest.mark.usefixtures("broken")
def test_as_json(run: Any) -> None:
    code, out, err = run("diagnose", "runs/mine", "--json")
    assert (code, err) == (0, "")
    diagnosis = json.loads(out)
    assert diagnosis["steps"] == 9000
    first = diagnosis["findings"][0]
    assert (first["name"], first["area"], first["explains"]) == ("lr_too_high", "schedule", 1.0)
    assert first["evidence"]["loss of the first epoch"] == 40


def test_nothing_wrong(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "read", lambda _: make_run(parts=None))
    _, out, _ = run("diagnose", "runs/mine")
    assert "No problem found in the record of the run." in out
    assert "Not examined: there is no record.json" in out


def test_no_run(run: Any, tmp_path: Path) -> None:
    code, out, err = run("diagnose", tmp_path)
    assert (code, out) == (2, "")
    assert "ConfigError" in err
    assert "contains no run.yaml" in err
