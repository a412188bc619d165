"""The notebook of the first hour runs, on small images and with a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from documentation import SMALL, copy_dataset

TRAIN = "qb.train(DATA, max_time=TIME, "
NOTEBOOK = Path(__file__).parent.parent / "examples" / "first_hour.ipynb"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_no_results_are_stored() -> None:
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells())


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy_dataset(Path("blood_cells"))
    tiny = {f"{part}.{key}": value for part, values in SMALL.items() for key, value in values.items()}
    names: dict[str, Any] = {"tiny": {"recipe": "detr_r50", **tiny}}
    sources = ["".join(cell["source"]) for cell in cells()]
    assert sum(TRAIN in source for source in sources) == 1
    for number, source in enumerate(sources, 1):
        exec(compile(source.replace(TRAIN, f"{TRAIN}**tiny, "), f"cell {number}", "exec"), names)
    assert {path.name for path in (tmp_path / "runs" / "first_hour").iterdir()} >= {
        "last.safetensors",
        "report.html",
        "run.yaml",
        "best.pt2",
    }
    assert 0 <= names["evaluation"].metrics["AP"] <= 1
