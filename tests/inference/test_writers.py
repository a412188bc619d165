from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import torch

from querybox.inference.detections import Detections
from querybox.inference.writers import coco_file, csv_file
from querybox.structures import Category

CATEGORIES = (Category(id=7, name='a, "b"'), Category(id=0, name="dög"))


def found(source: str, count: int = 2, size: tuple[int, int] = (50, 100)) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 10.0, 60.0, 40.0], [0.0, 0.0, 5.5, 6.25]])[:count],
        scores=torch.tensor([0.75, 0.5])[:count],
        labels=torch.tensor([0, 1])[:count],
        categories=CATEGORIES,
        size=size,
        source=source,
    )


def test_coco_file(tmp_path: Path) -> None:
    with coco_file(tmp_path / "d.json", CATEGORIES) as add:
        add(found("a.jpg"))
        add(found("b.jpg", count=0))
        add(found("c.mp4#3", count=1))
    content = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert content["categories"] == [{"id": 7, "name": 'a, "b"'}, {"id": 0, "name": "dög"}]
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg", "c.mp4#3"]
    assert content["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}
    assert [(each["id"], each["image_id"]) for each in content["annotations"]] == [(1, 1), (2, 1), (3, 3)]
    assert content["annotations"][1] == {
        "id": 2,
        "image_id": 1,
        "category_id": 0,
        "bbox": [0.0, 0.0, 5.5, 6.25],
        "score": 0.5,
        "area": 5.5 * 6.25,
        "iscrowd": 0,
    }


def test_csv_file(tmp_path: Path) -> None:
    with csv_file(tmp_path / "d.csv") as add:
        add(found("a, b.jpg"))
        add(found("b.jpg", count=0))
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == ["a, b.jpg", "a, b.jpg"]
    assert rows[0]["name"] == 'a, "b"'
    assert rows[1] == {
        "source": "a, b.jpg",
        "category_id": "0",
        "name": "dög",
        "score": "0.5",
        "left": "0.0",
        "top": "0.0",
        "right": "5.5",
        "bottom": "6.25",
    }


def test_coco_files_have_forward_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sep", "\\")  # as on Windows
    with coco_file(tmp_path / "a.json", CATEGORIES) as add:
        add(found("photos\\a.jpg"))
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["images"][0]["file_name"] == "photos/a.jpg"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no links without privileges")
def test_the_targets_of_links_in_the_output_folder_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "d.csv").symlink_to("target")
    (tmp_path / "hard.csv").hardlink_to(tmp_path / "target")
    for name in ("d.csv", "hard.csv"):
        with csv_file(tmp_path / name) as add:
            add(found("a.png"))
        assert (tmp_path / name).read_text(encoding="utf-8").startswith("source,")
    assert (tmp_path / "target").read_text() == "old"
