"""The anatomy's figures and tables: made by one command, from the weights that are shipped, and none is left over."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from chromium import find_chromium
from PIL import Image

from figures import tables
from figures.augmentation import IMAGES as IMAGES_OF_GUIDES
from figures.augmentation import KINDS, PICTURE, augmentations, pasted
from figures.make import FIGURES, IMAGES, PAGES, digest
from figures.panoptic import PICTURE as PANOPTIC
from figures.panoptic import detections, panoptic
from figures.serving import PICTURE as SERVING
from figures.serving import SIZE, page
from figures.sheet import DPI, save
from figures.specimen import Specimen, specimen
from figures.tiles import PICTURE as TILES
from figures.tiles import tiles
from figures.tracking import PICTURE as TRACKING
from figures.tracking import tracking

FIGURE = re.compile(r"!\[([^\]]*)\]\(images/(\w+)\.png\)")


@pytest.fixture(scope="module")
def made() -> Specimen:
    return specimen()


def test_every_page_shows_the_figure_of_its_name_and_tells_it_to_those_who_cannot_see() -> None:
    shown = {
        page.stem: FIGURE.findall(page.read_text()) for page in PAGES.glob("*.md") if page.stem != "index"
    }
    assert {page: [name for _, name in figures] for page, figures in shown.items()} == {
        name: [name] for name in FIGURES
    }
    assert all(len(alt) > 60 for figures in shown.values() for alt, _ in figures)


def test_files_are_those_of_the_makers_and_small() -> None:
    files = sorted(IMAGES.iterdir())
    assert [file.name for file in files] == sorted(f"{name}.png" for name in FIGURES)
    assert sum(file.stat().st_size for file in files) < 2_500_000


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_of_the_shipped_weights(name: str) -> None:
    with Image.open(IMAGES / f"{name}.png") as figure:
        assert figure.info["made of"] == digest(name), "run: make figures"


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_made(name: str, made: Specimen) -> None:
    figure = FIGURES[name](made)
    figure.savefig(BytesIO(), dpi=30)  # every part of it is drawn
    width, height = figure.get_size_inches()
    with Image.open(IMAGES / f"{name}.png") as shown:
        assert shown.size == (round(width * DPI), round(height * DPI)), "run: make figures"


def test_the_figure_of_augmentations_can_be_made() -> None:
    figure = augmentations()
    assert [axes.get_title() for axes in figure.axes] == list(KINDS)
    boxes = [len(axes.patches) for axes in figure.axes]
    assert boxes[0] == boxes[1] == boxes[2]  # colours and zoom-out keep all boxes
    assert boxes[4] > boxes[0] > boxes[3]
    with Image.open(PICTURE) as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())


def test_the_figure_of_copy_paste_can_be_made() -> None:
    figure = pasted()
    assert all(len(axes.patches) >= 2 for axes in figure.axes)
    with Image.open(IMAGES_OF_GUIDES / "copy_paste.png") as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())


def test_the_figure_of_tiles_can_be_made() -> None:
    figure = tiles()
    views, suppressed, merged = (
        len(axes.patches) - 4 for axes in figure.axes
    )  # without the outlines of four tiles
    assert views > suppressed > merged > 10
    with Image.open(TILES) as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())


def test_the_figure_of_tracking_can_be_made() -> None:
    """At least four cells are in all of its frames, with the same numbers."""
    figure = tracking()
    numbers = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    assert len(set.intersection(*numbers)) >= 4
    with Image.open(TRACKING) as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())


def test_the_figure_of_panoptic_segmentation_can_be_made() -> None:
    """Every mask becomes a segment, except the one that doubles another."""
    found = detections()
    segments = found.panoptic()
    assert segments.labels.tolist() == [*found.labels[:-2].tolist(), 2]
    figure = panoptic()
    numbers = [int(text.get_text()) for text in figure.axes[1].texts]
    assert numbers == list(range(1, len(found) - 1))  # of things
    with Image.open(PANOPTIC) as shown:
        assert shown.size == tuple(round(inches * DPI) for inches in figure.get_size_inches())


def test_the_picture_of_the_server_can_be_made() -> None:
    """As much of it is covered by the photo and by text as of the one in the guide, with whatever fonts."""
    with Image.open(SERVING) as shown:
        assert shown.size == SIZE
        expected = covered(shown)
    assert 0.3 < expected < 0.6
    assert covered(page(find_chromium())) == pytest.approx(expected, abs=0.03)


def covered(picture: Image.Image) -> float:
    """Return the fraction of an image that is not as light as an empty page."""
    return float(np.mean(np.asarray(picture.convert("L")) < 220))


def test_a_figure_is_the_same_byte_for_byte(made: Specimen, tmp_path: Path) -> None:
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        save(FIGURES["padding"](made), path, "a test")  # which is drawn soonest
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "step"])
def test_the_table_of_a_page_is_what_the_trace_says(name: str, made: Specimen) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert len(tables.PLACE.findall(page)) == 1
    assert tables.update_tables(page, made.trace) == page, "run: make figures"


def test_a_word_stands_for_one_number(made: Specimen) -> None:
    """Every axis of every value is as long as its letter says; h w are cells of 32 pixels."""
    lengths: dict[str, int] = {}
    for stage in made.trace.stages:
        words = tables.words(stage)
        assert len(words) == len(stage.shape)
        for word, length in zip(words, stage.shape, strict=True):
            assert lengths.setdefault(word, int(word) if word.isdigit() else length) == length, stage.name
    assert lengths["K"] == len(made.trace.categories) + 1
    assert lengths["S"] == lengths["h"] * lengths["w"]
    assert (lengths["h"], lengths["w"]) == (-(-lengths["H"] // 32), -(-lengths["W"] // 32))
