"""The pictures of the guides: every guide has one, and they are what the scripts in `figures` make of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from figures import results, schemes
from figures.sheet import DPI
from figures.specimen import DINO_WEIGHTS
from querybox.data import read_dataset
from querybox.detector import Detector
from querybox.errors import DataError

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
PICTURE = re.compile(r"!\[([^\]]+)\]\(\.\./images/(\w+)\.(?:png|jpg)\)")
WITHOUT = {"platforms"}
"""Guides with nothing to be seen."""


@pytest.mark.parametrize("guide", sorted(path.stem for path in GUIDES.glob("*.md")))
def test_a_guide_has_a_picture_and_tells_it_to_those_who_cannot_see(guide: str) -> None:
    found = PICTURE.findall((GUIDES / f"{guide}.md").read_text(encoding="utf-8"))
    assert bool(found) == (guide not in WITHOUT)
    assert all(
        len(alt) > 60 and (schemes.IMAGES / f"{name}.png").exists() for alt, name in found if name != "nuclei"
    )


@pytest.mark.parametrize("name", schemes.FIGURES)
def test_schemes_are_up_to_date(name: str) -> None:
    figure = schemes.FIGURES[name]()
    with Image.open(schemes.IMAGES / f"{name}.png") as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())
        assert shown.info["made of"] == schemes.content(figure), "run: make figures"


def test_the_message_that_is_explained_is_that_of_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train-0.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(DataError) as told:
        read_dataset("train-0.tar")
    assert str(told.value) == " ".join(text for _, text in schemes.MESSAGE)


def same_size(figure: Figure, name: str) -> None:
    """Compare the size of a figure with that of its picture."""
    with Image.open(schemes.IMAGES / f"{name}.png") as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches()), (
            "run: make figures"
        )


def test_the_figure_of_thresholds_can_be_made() -> None:
    figure = results.thresholds()
    low, high = (len(axes.patches) for axes in figure.axes)
    assert low > high > 10
    same_size(figure, "predict")


def test_the_figure_of_faulty_boxes_can_be_made() -> None:
    figure = results.faults()
    assert {text.get_text() for text in figure.axes[0].texts} == {*results.FAULTS}
    same_size(figure, "validate")


def test_the_figure_of_an_evaluation_can_be_made() -> None:
    figure = results.evaluated(results.some("test", 2))
    left, right = figure.axes
    means = [line.get_ydata().mean() for line in left.lines]  # type: ignore[union-attr]
    assert means == sorted(means, reverse=True)
    assert right.patches
    same_size(figure, "evaluate")


def test_the_figure_of_exports_can_be_made() -> None:
    """Of what it shows, apart from the exports, which take long."""
    detector = Detector.load(DINO_WEIGHTS)
    found, fewer = (results.picture(detector, threshold) for threshold in (0.5, 0.6))
    names = ("PyTorch", "ONNX", "OpenVINO, int8")
    figure = results.exported(
        {name: results.Runtime(found if name != names[1] else fewer, 9) for name in names}
    )
    assert [axes.get_title() for axes in figure.axes] == [f"{name}\n9 MB" for name in names]
    assert figure.axes[1].get_xlabel().startswith(f"{len(fewer)} cells, edges within\n0 pixels")
    same_size(figure, "export")
