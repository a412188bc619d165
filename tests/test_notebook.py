"""What a person ends a cell with shows itself, and no text of the data becomes markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from run_records import RECORD, write_run
from small_evaluations import LEFT, data_of, image

from querybox.detector import Detector
from querybox.diagnosis import diagnose
from querybox.diagnosis.record import add_to_record
from querybox.evaluation.evaluate import coco_metrics
from querybox.inference.detections import Detections
from querybox.structures import Category
from querybox.training import TrainResult

HOSTILE = (Category(id=1, name="<script>alert(1)</script>"), Category(id=2, name="a & b <b>"))


class Shown(HTMLParser):
    """Collects the rows of the tables of a text, and checks that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


TABLES = {"p", "table", "thead", "tbody", "tr", "th", "td"}


def test_an_evaluation() -> None:
    data = replace(data_of(image(1, (0, LEFT, False)), image(2, (0, LEFT, False))), categories=HOSTILE)
    found = Detections(
        boxes_xyxy=torch.tensor([LEFT, LEFT]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([0, 1]),
        categories=HOSTILE,
        size=(100, 100),
    )
    evaluation = coco_metrics(data, {1: found})
    shown = Shown(evaluation._repr_html_())
    assert shown.tags == TABLES
    assert "2 objects in 2 images" in shown.text
    assert list(evaluation.metrics) in shown.rows
    assert ["<script>alert(1)</script>", "2", "0.505", "0.505"] in shown.rows
    assert ["a & b <b>", "0", "-", "-"] in shown.rows  # nothing to measure by
    assert ["missed", "1", ""] in shown.rows
    assert ["all", "1", "0"] in shown.rows


def test_a_run() -> None:
    detector = Detector.from_recipe(
        "detr_r18",
        categories=HOSTILE,
        backbone="test_resnet",
        width=16,
        heads=2,
        encoder_layers=0,
        decoder_layers=1,
    )
    result = TrainResult(run_dir=Path("runs/<b>"), detector=detector, metrics={"AP": 0.25, "APs": np.nan})
    assert repr(result) == f"TrainResult({str(Path('runs/<b>'))!r}: AP 0.250)"
    shown = Shown(result._repr_html_())
    assert shown.tags == TABLES
    assert shown.text.startswith("The run is in runs/<b>")
    assert shown.rows == [["AP", "APs"], ["0.250", "-"]]
    assert Shown(replace(result, metrics={})._repr_html_()).rows == []


def test_a_diagnosis(tmp_path: Path) -> None:
    (tmp_path / "<b>").mkdir()
    folder = write_run(tmp_path / "<b>")
    shown = Shown(diagnose(folder)._repr_html_())
    assert shown.tags == {"p"}
    assert f"{folder}: AP 0.180, AP50 0.720 after 9,000 steps, 9 epochs" in shown.text
    assert "No problem found in the record of the run." in shown.text
    training = replace(RECORD.training, faulty_boxes=500)  # type: ignore[type-var]
    add_to_record(folder, training=training)
    diagnosis = diagnose(folder)
    shown = Shown(diagnosis._repr_html_())
    assert shown.rows == [["cause", "evidence", "cure"], diagnosis.findings[0].row()]
    (folder / "record.json").unlink()
    assert "Not examined: there is no record.json" in Shown(diagnose(folder)._repr_html_()).text
