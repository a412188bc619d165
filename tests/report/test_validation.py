"""The page of problems found in a dataset."""

from __future__ import annotations

import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from chromium import chromium, find_chromium, run_axe
from dataset_writers import Drawn, coco, write_images, write_json
from PIL import Image

from querybox.data import validate
from querybox.report.validation import make_section, write_validation

IMAGES = [
    Drawn(name=f"{number}.png", size=(40, 30), objects=[("cat", (1, 2, 11, 22))]) for number in range(9)
]


def write_page(folder: Path) -> Path:
    """Write the page of a dataset with 8 clipped boxes, one of them NaN as well, a missing image and a crowd."""
    document = coco(IMAGES, ["cat"])
    for annotation in document["annotations"][:8]:
        annotation["bbox"] = [1, 2, 100, 10]
    document["annotations"][0]["bbox"] = [float("nan"), 2, 3, 4]
    document["annotations"][8]["iscrowd"] = 1
    document["images"][1]["file_name"] = "<script>.png"
    write_images(folder / "train", IMAGES)
    path = write_json(folder / "train" / "_annotations.coco.json", document)
    write_validation(folder / "new" / "page.html", validate(path, max_corrupt=0.5))
    return folder / "new" / "page.html"


def test_first_places_are_shown_and_the_others_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("querybox.report.validation.PICTURES", 2)
    monkeypatch.setattr("querybox.report.validation.LISTED", 4)
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "✓ The data can be used." in text
    clipped = text.partition("boxes that extend beyond their image (7)")[2].partition("</details>")[0]
    assert clipped.count("<img") == 1  # the second one's image is missing
    assert clipped.count("<td>") == 3
    assert "<p>And 3 more.</p>" in clipped
    assert "&lt;script&gt;.png" in text
    assert "<script" not in text


def test_boxes_are_drawn_in_the_orientation_that_they_refer_to(tmp_path: Path) -> None:
    document = coco([Drawn(name="a.png", size=(40, 30), objects=[("cat", (1, 2, 50, 22))])], ["cat"])
    exif = Image.Exif()
    exif[0x112] = 6  # shown upright, 30 x 40
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "a.png", exif=exif)
    path = write_json(tmp_path / "train" / "_annotations.coco.json", document)
    ((finding,),) = (split.findings for split in validate(path).splits.values())
    (url,) = make_section(finding).pictures.values()
    assert Image.open(BytesIO(b64decode(url.partition(",")[2]))).size == (40, 30)


def test_in_a_browser(tmp_path: Path) -> None:
    program = find_chromium()
    path = write_page(tmp_path)
    with chromium(program, tmp_path / "profile") as page:
        for width, scheme in ((1200, "light"), (390, "dark")):
            page.size(width, 800)
            page.scheme(scheme)
            page.open(path, "document.readyState === 'complete'")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert all(page.run("Array.from(document.images, (image) => image.naturalWidth > 0)"))
            found = run_axe(page)
            assert not found, json.dumps(found, indent=1)
        opened = page.run("Array.from(document.querySelectorAll('details'), (each) => each.open)")
        assert opened == [
            True,
            True,
            True,
            True,
            False,
            False,
        ]  # four warnings (also of overflowing boxes), two notes
        assert page.errors == []
        assert {url for url in page.requests if not url.startswith("data:")} == {path.as_uri()}
