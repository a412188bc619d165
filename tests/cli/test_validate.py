from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def own_photos(photos: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def test_tells_all_splits_in_tables(run: Any, own_photos: Path) -> None:
    path = own_photos / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{**item, "area": 600, "iscrowd": 0} for item in content["annotations"]]
    path.write_text(json.dumps(content))
    code, out, err = run("validate", own_photos)
    assert (code, err) == (0, "")
    assert "train: 4 images, 4 objects" in out
    assert "\nval: 2 images, 2 objects: no problems found\n" in out
    assert "boxes without width or height: dropped" in out
    assert "photos can be used" in out


def test_errors_are_exit_code_1(run: Any, own_photos: Path) -> None:
    for number in (1, 2, 3, 4):
        (own_photos / "images" / f"train{number}.jpg").write_bytes(b"")
    code, out, err = run("validate", own_photos, "--split", "train")
    assert (code, err) == (1, "")
    assert "4 of 4, more than data.max_corrupt = 0.05" in out
    assert "- 1 more place " in out
    assert "cannot be used: there are errors" in out
    assert run("validate", own_photos, "--split", "val")[0] == 0


def test_a_split_with_errors_leaves_the_others(run: Any, own_photos: Path, tmp_path: Path) -> None:
    path = own_photos / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 77
    path.write_text(json.dumps(content))
    code, out, _ = run("validate", own_photos, "--report", tmp_path / "page.html")
    assert code == 1
    for text in (out, (tmp_path / "page.html").read_text(encoding="utf-8")):
        assert "can be used in part (train); there are errors in val" in text


def test_json_is_all_that_is_printed(run: Any, own_photos: Path) -> None:
    (own_photos / "images" / "train2.jpg").write_bytes(b"")
    code, out, _ = run("validate", own_photos, "--json", "--max-corrupt", "0.25")
    content = json.loads(out)
    assert code == 0
    assert content["usable"] is True
    assert content["splits"]["train"]["left_out"] == 1


def test_the_page_shows_what_is_wrong_and_runs_nothing(run: Any, own_photos: Path, tmp_path: Path) -> None:
    path = own_photos / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["bbox"] = [50, 30, 500, 500]
    content["annotations"][2]["bbox"] = [float("nan"), 1, 5, 5]
    content["images"][3]["file_name"] = "<script>alert(1)</script>.jpg"
    path.write_text(json.dumps(content))
    code, _, _ = run("validate", own_photos, "--report", "faults/page.html")
    page = (tmp_path / "faults" / "page.html").read_text()
    assert code == 1
    assert "boxes that extend beyond their image" in page
    assert page.count("data:image/jpeg;base64") == 3  # of a NaN, of no size, and clipped
    assert "&lt;script&gt;" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "DataError: gone: no such file or folder"),
        (["PHOTOS", "--split", "test"], "has no split 'test'; it has train, val"),
        (["PHOTOS", "--max-corrupt", "5"], "ConfigError: validate got max_corrupt=5.0; expected 0 to 1"),
    ],
)
def test_bad_input_is_told_in_one_line(run: Any, photos: Path, words: list[str], message: str) -> None:
    code, _, err = run("validate", *(photos if word == "PHOTOS" else word for word in words))
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_dataset_is_not_overwritten_by_a_report(run: Any, own_photos: Path) -> None:
    path = own_photos / "annotations" / "train.json"
    content = path.read_bytes()
    code, _, err = run("validate", own_photos, "--report", path)
    assert code == 2
    assert "train.json: exists, and was not written by querybox; expected a new file" in err
    assert path.read_bytes() == content
    assert [run("validate", own_photos, "--report", "page.html")[0] for _ in range(2)] == [0, 0]
