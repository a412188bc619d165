from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def images(path: Path) -> list[dict[str, Any]]:
    """What a page tells of its images."""
    data = (
        path.read_text().partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    )
    return list(json.loads(data)["images"])


def test_writes_a_page(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("inspect", photos / "images", "--model", model, "-o", "page.html", "--queries", "3")
    assert (code, err) == (0, "")
    assert out == "The page is page.html, 0.1 MB\n"
    shown = images(tmp_path / "page.html")
    assert [each["name"] for each in shown] == [
        "train1.jpg", "train2.jpg", "train3.jpg", "train4.jpg", "val1.jpg", "val2.jpg",
    ]  # fmt: skip
    assert {len(each["queries"]) for each in shown} == {3}
    assert {each["objects"] is None for each in shown} == {True}
    assert [look["layer"] for look in shown[0]["encoder"]] == [0]


def test_with_annotations(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    pictures = sorted((photos / "images").glob("val*"))
    words = ("--annotations", photos, "--split", "val", "--encoder-layers", "all")
    code, _, err = run("inspect", *pictures, "--model", model, *words)
    assert (code, err) == (0, "")
    shown = images(tmp_path / "inspect.html")
    assert [each["objects"]["labels"] for each in shown] == [[1], [0]]  # ids 9 and 3


def test_says_what_is_wrong(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "images" / "val1.jpg"
    assert "got no images" in run("inspect", "--model", model)[2]
    code, _, err = run("inspect", picture, "--model", model, "--encoder-layers", "2")
    assert (code, err) == (
        2,
        "ConfigError: --encoder-layers got '2'; expected last, all, or numbers from 1 to 1\n",
    )
    assert "expected last, all" in run("inspect", picture, "--model", model, "--encoder-layers", "first")[2]
    words = ("--annotations", photos, "--split", "val")
    code, _, err = run("inspect", photos / "images" / "train1.jpg", "--model", model, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "has no annotations of" in err
    assert not (tmp_path / "inspect.html").exists()


@pytest.mark.parametrize("words", [("trace",), ("inspect",)])
def test_a_model_is_needed(run: Any, photos: Path, words: tuple[str, ...]) -> None:
    code, _, err = run(*words, photos / "images" / "val1.jpg")
    assert code == 2
    assert "--model" in err


def test_tiles_of_a_large_image(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "images" / "val1.jpg"
    words = ("--annotations", photos, "--split", "val", "--tile", "32", "--overlap", "0")
    code, _, err = run("inspect", picture, "--model", model, *words)
    assert (code, err) == (0, "")
    shown = [(each["name"], each["objects"]["boxes"]) for each in images(tmp_path / "inspect.html")]
    # The image has 60x40 pixels, and its object those from (5, 6) to (35, 26); less than half of it is on the right.
    assert shown == [
        ("val1.jpg", [pytest.approx([20 / 60, 16 / 40, 30 / 60, 20 / 40])]),
        ("val1.jpg, 32x32 pixels at (0, 0)", [[18.5 / 32, 16 / 32, 27 / 32, 20 / 32]]),
        ("val1.jpg, 32x32 pixels at (28, 0)", []),
        ("val1.jpg, 32x32 pixels at (0, 8)", [[18.5 / 32, 9 / 32, 27 / 32, 18 / 32]]),
        ("val1.jpg, 32x32 pixels at (28, 8)", []),
    ]


def test_tiles_without_annotations(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    picture = photos / "images" / "val1.jpg"
    code, _, err = run("inspect", picture, "--model", model, "--tile", "40")
    assert (code, err) == (0, "")
    shown = images(tmp_path / "inspect.html")
    assert [each["name"] for each in shown] == [
        "val1.jpg", "val1.jpg, 40x40 pixels at (0, 0)", "val1.jpg, 40x40 pixels at (20, 0)",
    ]  # fmt: skip
    with Image.open(picture) as image:
        image.crop((20, 0, 60, 40)).save("tile.png")
    run("inspect", "tile.png", "--model", model, "-o", "tile.html")
    (tile,) = images(tmp_path / "tile.html")
    assert tile["queries"] == shown[2]["queries"]
