"""The validator: all that is wrong with a dataset, at once and exactly."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import Drawn, coco, write_coco, write_images, write_json, write_voc, write_yolo
from PIL import Image

import querybox
from querybox.data import read_dataset, validate
from querybox.data.findings import KINDS, MAX_PLACES, DataFinding, FindingCollector
from querybox.data.image import examine_image
from querybox.data.records import log_warnings
from querybox.data.scan import FEW_IMAGES, examine_images, with_observations
from querybox.data.validate import with_dataset_findings
from querybox.errors import ConfigError, DataError, ImageError, WorkerError
from querybox.pixels import ORIENTATION
from querybox.text import listed

IMAGES = [
    Drawn(name=f"{number}.png", size=(40, 30), objects=[("cat", (1, 2, 11, 22))]) for number in range(4)
]


def kinds(report: Any) -> dict[str, int]:
    (split,) = report.splits.values()
    return {found.kind: found.count for found in split.findings}


def test_a_sound_dataset_has_no_findings(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    looked: list[int] = []
    report = querybox.validate(path, callback=lambda record: looked.append(record.id))
    assert report.usable
    assert kinds(report) == {}
    assert looked == [1, 2, 3, 4]
    split = report.splits["train"]
    assert (split.images, split.excluded, split.objects) == (4, 0, 4)
    assert [category.name for category in split.categories] == ["cat"]


def test_data_and_reports_print_in_one_line_however_many_images_they_have(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    assert repr(read_dataset(path)) == f"DetectionData({str(path)!r}, 4 images, 4 objects)"
    (tmp_path / "images" / "0.png").unlink()
    report = repr(validate(path, max_corrupt=1.0))
    assert "images=3, excluded=1, objects=3, findings=(DataFinding(kind='missing_image', file=" in report
    assert "count=1" in report
    assert "Category" not in report
    assert "Place" not in report


def test_images_are_left_out_for_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    folder = tmp_path / "images"
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes(b"<html>")
    Image.new("RGB", (41, 30)).save(folder / "2.png")
    Image.fromarray(np.zeros((30, 40), np.float32)).save(folder / "3.png", format="TIFF")
    report = validate(path, max_corrupt=1.0)
    split = report.splits["train"]
    assert kinds(report) == {
        "no_objects": 1, "missing_image": 1, "broken_image": 1, "other_size": 1, "unknown_range": 1
    }  # fmt: skip
    assert (split.images, split.excluded) == (0, 4)
    assert not split.usable
    ids = {found.kind: found.image_ids for found in split.findings}
    assert ids["missing_image"] == (1,)
    assert ids["unknown_range"] == (4,)


@pytest.mark.parametrize(("most", "usable"), [(0.25, True), (0.24, False)])
def test_a_share_of_the_images_may_be_unreadable(tmp_path: Path, most: float, usable: bool) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    (tmp_path / "images" / "2.png").write_bytes(b"")
    report = validate(path, max_corrupt=most)
    assert report.usable is usable
    assert ("too_many_unreadable" in kinds(report)) is not usable


@pytest.mark.parametrize("write", [write_voc, write_yolo])
def test_other_formats_are_looked_at_alike(tmp_path: Path, write: Any) -> None:
    write(tmp_path, "train", IMAGES, *([["cat"]] if write is write_yolo else []))
    (file,) = tmp_path.rglob("2.png")
    file.write_bytes(file.read_bytes()[:60])
    assert kinds(validate(tmp_path, max_corrupt=0.5)) == {"broken_image": 1}


def test_annotations_that_cannot_be_read_are_a_finding(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    write_json(tmp_path / "annotations" / "val.json", {})
    path.write_text("{")
    report = validate(tmp_path)
    assert not report.usable
    assert [found.kind for found in report.splits["train"].findings] == ["malformed"]
    assert "train.json" in report.splits["train"].findings[0].places[0].what
    assert list(validate(tmp_path, "val").splits) == ["val"]
    with pytest.raises(DataError, match="has no split 'test'"):
        validate(tmp_path, "test")
    with pytest.raises(DataError, match="no such file or folder"):
        validate(tmp_path / "gone")


def test_crowds_negatives_and_lost_objects_are_counted(tmp_path: Path) -> None:
    document = coco(
        [
            Drawn(
                name="a.png",
                size=(40, 30),
                objects=[("dog", (9, 9, 20, 20)), *(("cat", (0, 0, 9, side)) for side in range(6, 10))],
            ),
            Drawn(name="b.png", size=(9, 9)),
        ],
        ["cat", "dog"],
    )
    document["annotations"][0]["iscrowd"] = 1
    write_images(tmp_path, [Drawn(name="a.png", size=(40, 30)), Drawn(name="b.png", size=(9, 9))])
    data = with_dataset_findings(
        read_dataset(write_json(tmp_path / "train.json", document)), 0.0, num_queries=1
    )
    found = {one.kind: one for one in data.findings}
    assert {kind: one.count for kind, one in found.items()} == {
        "too_many_objects": 3,
        "unused_category": 1,  # of which there is a crowd region alone
        "crowd": 1,
        "negative": 1,
    }
    assert found["too_many_objects"].places[0].what == "image 1: 4 objects, 1 queries"


def test_many_images_are_decoded_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    (tmp_path / "images" / "2.png").write_bytes(b"")
    data = read_dataset(path)
    alone = examine_images(data.images)
    monkeypatch.setattr("querybox.data.scan.FEW_IMAGES", 1)
    assert FEW_IMAGES > 1
    assert examine_images(data.images) == alone
    assert [record.id for record in with_observations(data, alone).images] == [1, 2, 4]


def test_a_process_that_is_killed_while_it_checks_images_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    monkeypatch.setattr("querybox.data.scan.FEW_IMAGES", 1)
    monkeypatch.setattr("querybox.data.scan.available_cpus", lambda: 1)
    monkeypatch.setattr("querybox.data.scan.examine_image", lambda *_, **__: os._exit(9))
    with pytest.raises(WorkerError, match=r"images exited \(DataLoader worker .* Free memory, and repeat"):
        validate(path)


def test_a_script_that_begins_again_in_a_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where processes are not forked: each imports the script that started it."""
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    monkeypatch.chdir(tmp_path)
    for begin in (validate, querybox.train):
        with pytest.raises(ConfigError, match="under `if __name__ == '__main__':`"):
            begin(path)
    assert not Path("runs").exists()


def test_the_report_as_json_has_every_place(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "train", IMAGES, ["cat"])
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"")
    content = json.loads(json.dumps(validate(path).to_json()))
    findings = {found["kind"]: found for found in content["splits"]["train"]["findings"]}
    assert findings["broken_image"]["image_ids"] == [1, 2, 3, 4]
    assert len(findings["broken_image"]["places"]) == findings["broken_image"]["count"] == 4
    assert findings["broken_image"]["severity"] == "warning"
    assert content["usable"] is False


def test_findings_are_counted_on_where_places_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.data.findings.MAX_PLACES", 2)
    findings = FindingCollector(Path("a"))
    for number in range(3):
        findings.add("negative", f"image {number}", image_id=number)
    (found,) = findings.by_kind()
    assert (found.count, len(found.places)) == (3, 2)
    (more,) = FindingCollector(Path("a"), known=[found]).by_kind()
    assert more == found
    assert MAX_PLACES > 2


def test_kinds_tell_what_to_do() -> None:
    assert all(kind.meaning and kind.cure and not kind.cure.endswith(".") for kind in KINDS.values())
    found = DataFinding(kind="negative", file=Path("a"), count=0, places=())
    assert found.severity == "note"
    assert listed([1, 2, 3], 2) == "1, 2 and 1 more"


def test_warnings_are_one_line_and_none_where_nothing_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = read_dataset(write_coco(tmp_path, "train", IMAGES, ["cat"]))
    log_warnings(data)
    assert caplog.messages == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_ambiguous_where_size_does_not_tell(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for suffix in ("jpg", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.new("RGB", (30, 20)).save(path, exif=exif)
        turned = (30, 20) if orientation >= 5 else (20, 30)
        told = dict(examine_image(path, turned).findings)
        assert ("ambiguous_orientation" in told) == (orientation > 1 and (suffix == "tif" or orientation < 5))
        assert ("ambiguous_orientation" in dict(examine_image(path).findings)) == (orientation > 1)


def test_a_draft_finds_the_same_files_broken_as_all_pixels_do(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = tmp_path / "whole.jpg"
    path = tmp_path / "a.jpg"
    for options in ({}, {"progressive": True}):
        Image.fromarray(noise).save(whole, **options)  # type: ignore[arg-type]
        content = whole.read_bytes()
        for length in range(0, len(content) + 1, max(1, len(content) // 40)):
            path.write_bytes(content[:length])
            assert broken(path) == broken_in_full(path), length


def broken(path: Path) -> bool:
    try:
        examine_image(path, (64, 64))
    except ImageError:
        return True
    return False


def broken_in_full(path: Path) -> bool:
    try:
        querybox.data.read_image(path, (64, 64))
    except ImageError:
        return True
    return False


def test_oddities_are_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.png", format="WEBP", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(tmp_path / "deep.png")
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.unknown", format="PNG")
    assert [kind for kind, _ in examine_image(tmp_path / "a.gif").findings] == ["animation"]
    assert [kind for kind, _ in examine_image(tmp_path / "a.png").findings] == ["other_format", "animation"]
    assert [kind for kind, _ in examine_image(tmp_path / "deep.png").findings] == ["deep_image"]
    assert examine_image(tmp_path / "phone.jpg") == ([], None)
    assert examine_image(tmp_path / "a.unknown") == ([], None)
