from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image


def test_draws_the_queries_of_a_dataset(run: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    code, out, err = run("queries", model, photos, "--split", "val", "-o", "view.png", "--queries", "3")
    assert (code, out, err) == (0, "The picture is view.png\n", "")
    with Image.open(tmp_path / "view.png") as picture:
        assert picture.width == 1000


def test_says_what_is_wrong(run: Any, model: Path, photos: Path) -> None:
    code, _, err = run("queries", model, photos, "--split", "val", "-o", "view.gif")
    assert (code, err.count("\n")) == (2, 1)
    assert "view.gif: a view of queries is drawn as .png, .svg or .pdf" in err
    assert "has several splits" in run("queries", model, photos)[2]
    assert "expected 1 or more" in run("queries", model, photos, "--split", "val", "--queries", "0")[2]
