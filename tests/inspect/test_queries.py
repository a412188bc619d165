"""The view of queries: it shows what the model answers, for every image in its own row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from querybox.data.records import DetectionData, ImageRecord
from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.inspect import QueryView, query_view

SIZES = [(64, 96), (96, 64), (64, 96), (80, 100)]


@pytest.fixture
def data(tmp_path: Path, detr: Detector) -> DetectionData:
    """Four images of three shapes, without objects."""
    random = np.random.default_rng(0)
    records = []
    for number, (height, width) in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        nothing = np.zeros(0, dtype=np.int64)
        records.append(
            ImageRecord(
                id=number,
                path=path,
                width=width,
                height=height,
                boxes_xyxy=np.zeros((0, 4)),
                labels=nothing,
                crowd=nothing.astype(bool),
                areas=nothing.astype(np.float64),
            )
        )
    return DetectionData(source=tmp_path, categories=detr.categories, images=tuple(records))


def view_of(boxes: list[list[float]], scores: list[float], sizes: tuple[int, int] = (100, 100)) -> QueryView:
    """One image and a query for each box."""
    return QueryView(
        boxes=torch.tensor([boxes]),
        scores=torch.tensor([scores]),
        sizes=torch.tensor([sizes]),
        proposed=False,
    )


def test_every_image_has_the_answers_that_the_model_gives_for_it(detr: Detector, data: DetectionData) -> None:
    seen: list[int] = []
    view = query_view(detr, data, batch_size=2, callback=lambda record: seen.append(record.id))
    assert sorted(seen) == [0, 1, 2, 3]
    assert view.sizes.tolist() == [list(size) for size in SIZES]
    for place, record in enumerate(data.images):
        trace = detr.trace(record.path)
        assert_close(view.boxes[place], trace.boxes[-1], rtol=0, atol=1e-4)
        assert_close(view.scores[place], trace.scores[-1].amax(1), rtol=0, atol=1e-4)


def test_proposals_are_told_from_queries(relative: Detector, data: DetectionData) -> None:
    view = query_view(relative, data)
    learned = type(relative.queries).__name__ == "PointQueries"
    assert view.proposed is not learned
    assert ("proposals, by rank" in view._repr_html_()) is not learned


def test_kinds_of_boxes_are_those_on_the_image() -> None:
    boxes = [[0.5, 0.5, 0.09, 0.1], [0.5, 0.5, 0.3, 0.2], [0.5, 0.5, 0.2, 0.3], [0.5, 0.5, 0.1, 0.1]]
    assert view_of(boxes, [0.5] * 4).kinds.tolist() == [[0, 1, 2, 1]]
    assert view_of(boxes, [0.5] * 4, (100, 200)).kinds.tolist() == [[0, 1, 1, 1]]  # twice as wide
    assert view_of(boxes, [0.5] * 4, (200, 100)).kinds.tolist() == [[0, 2, 2, 2]]


def test_the_queries_with_the_highest_mean_score_are_drawn(tmp_path: Path) -> None:
    view = view_of([[0.5, 0.5, 0.2, 0.3]] * 7, [0.125, 0.5, 0.25, 0.75, 0.0, 0.0, 0.0])
    assert view.ranking[:4] == [3, 1, 2, 0]
    view.save(tmp_path / "view.svg", 6)
    text = (tmp_path / "view.svg").read_text()
    assert [
        name for name in ("query 3: 0.75", "query 1: 0.50", "query 4: 0.00", "query 6:") if name in text
    ] == [
        "query 3: 0.75",
        "query 1: 0.50",
        "query 4: 0.00",
    ]
    view.save(tmp_path / "view.png")
    with Image.open(tmp_path / "view.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
        drawn = (pixels == [0x00, 0x72, 0xB2]).all(
            -1
        )  # tall ones, of which seven are drawn, and one in the legend
        assert pixels.shape[0] < pixels.shape[1] < 1200
    assert drawn.any()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    view = view_of([[0.5, 0.5, 0.2, 0.3]], [0.5])
    with pytest.raises(ConfigError, match=r"view\.jpg: a view of queries is drawn as \.png, "):
        view.save(tmp_path / "view.jpg")
    with pytest.raises(ConfigError, match="queries=0; expected 1 or more"):
        view.save(tmp_path / "view.png", 0)


def test_shows_itself_in_jupyter() -> None:
    text = view_of([[0.5, 0.5, 0.2, 0.3]], [0.5])._repr_html_()
    assert text.startswith('<img style="max-width:100%" alt="Centres of the boxes of each query in 1 images')
    assert 'src="data:image/png;base64,' in text
