"""The section of the report that lists the images which could not be read, and so did not count."""

from __future__ import annotations

import json
from pathlib import Path

from querybox.data.findings import UNREADABLE
from querybox.data.validate import VALIDATION
from querybox.diagnosis.record import read_record
from querybox.evaluation.result import Evaluation
from querybox.report import page


def left_out_section(run_dir: Path, evaluation: Evaluation) -> str:
    """Tabulate these images and why; nothing where all could be read."""
    rows = [
        *before_the_run(run_dir / VALIDATION),
        *(["during the run", reason] for reason in read_record(run_dir).lost.values()),
        *(["in the evaluation", reason] for reason in evaluation.unreadable.values()),
    ]
    return page.section("Images that could not be read", page.table(["when", "why"], rows)) if rows else ""


def before_the_run(path: Path) -> list[list[str]]:
    """Return what a run's ``validation.json`` says of images that were left out."""
    if not path.is_file():
        return []
    splits = json.loads(path.read_text(encoding="utf-8"))
    return [
        [f"before the run ({name})", what]
        for name, split in splits.items()
        for found in split["findings"]
        if found["kind"] in UNREADABLE
        for what in found["places"]
    ]
