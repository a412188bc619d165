"""The section of the report that says what is wrong with the run, and what helps."""

from __future__ import annotations

from pathlib import Path

from querybox.diagnosis import diagnose
from querybox.diagnosis.finding import HEADS
from querybox.diagnosis.record import RECORD
from querybox.report import page


def diagnosis_section(run_dir: Path) -> str:
    """Tabulate the findings, most likely first; nothing for a folder without a run's record."""
    if not (run_dir / RECORD).is_file():
        return ""
    diagnosis = diagnose(run_dir)
    rows = [finding.row() for finding in diagnosis.findings]
    content = (
        page.table(HEADS, rows) if rows else page.paragraph("Nothing is wrong that the run's record shows.")
    )
    notes = "".join(page.paragraph(f"Not looked at: {note}.") for note in diagnosis.missing)
    return page.section("What keeps the AP down, most likely cause first", content + notes)
