"""Charts of many classes, and of classes with odd names."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from small_evaluations import LEFT, RIGHT, image

from querybox.data.records import DetectionData
from querybox.evaluation.evaluate import measure
from querybox.inference.detections import Detections
from querybox.inference.draw import draw
from querybox.report.charts import confusion_chart, line_chart, literal, most_confused, precision_recall_chart
from querybox.structures import Category

ODD = (
    "a\rb",
    "a\nb",
    "a\u2028b",
    "a\u0085b",
    "a\x00b",
    "a\x1b[31mb",
    "\ud800",
    "\udcff",
    "\u202eb",
    "$x$",
    "<&>",
)


def svg_of(url: str) -> str:
    """Return the text of a chart, which has to be well-formed."""
    head, _, content = url.partition(",")
    text = base64.b64decode(content).decode() if "base64" in head else unquote(content)
    ElementTree.fromstring(text)
    return text


def test_the_most_confused_classes_are_chosen() -> None:
    confusion = np.zeros((6, 6), dtype=np.int64)
    confusion[0, 0] = 100  # right
    confusion[5, 1] = confusion[1, 5] = 50  # with the background
    confusion[4, 2], confusion[3, 4] = 3, 1
    assert most_confused(confusion, 2) == [2, 4]
    assert most_confused(confusion, 3) == [2, 3, 4]
    assert most_confused(confusion, 9) == [0, 1, 2, 3, 4]


def test_thousands_of_classes_take_seconds(tmp_path: Path) -> None:
    import torch

    categories = tuple(Category(id=n, name=f"class {n}") for n in range(5000))
    images = tuple(image(n, (n, LEFT, False), (4999 - n, RIGHT, False)) for n in range(40))
    data = DetectionData(source=tmp_path, categories=categories, images=images)
    found = {
        n: Detections(
            boxes_xyxy=torch.tensor([RIGHT, LEFT]),
            scores=torch.tensor([0.9, 0.8]),
            labels=torch.tensor([2500 + n % 2, n]),  # the first is always confused
            categories=categories,
            size=(100, 100),
        )
        for n in range(40)
    }
    begun = time.process_time()
    evaluation = measure(data, found, {}, 0.05)
    chart = svg_of(confusion_chart(evaluation))
    assert "the 80 classes that are confused most often, of 5,000" in chart
    assert "class 2500" in chart
    assert "class 4999" in chart
    svg_of(precision_recall_chart(evaluation))
    evaluation.to_json(tmp_path / "metrics.json")
    assert (
        time.process_time() - begun < 20
    )  # 2 s; a matrix for each image and all names in the chart took minutes
    content = json.loads((tmp_path / "metrics.json").read_text())["agreement"]
    assert content["confusion"] is None
    expected = [[n, n, 1] for n in range(40)] + [[4999 - n, 2500 + n % 2, 1] for n in reversed(range(40))]
    assert content["confusion_entries"] == expected
    assert (evaluation.operating_point.f1, evaluation.operating_point.recall) == (0.5, 0.5)
    assert set(evaluation.operating_point.image_f1.values()) == {0.5}


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_names_are_shown_with_escapes(name: str) -> None:
    import torch

    chart = svg_of(line_chart("names", [1, 2], {name: [1, 2], "other": [2, 1]}))
    assert "other" in chart
    found = Detections(
        boxes_xyxy=torch.tensor([LEFT]),
        scores=torch.tensor([0.9]),
        labels=torch.tensor([0]),
        categories=(Category(id=1, name=name),),
        size=(100, 100),
    )
    assert np.asarray(draw(Image.new("RGB", (100, 100)), found)).any()


def test_names_that_begin_with_an_underscore_are_in_the_legend() -> None:
    chart = svg_of(line_chart("names", [1, 2], {"_one": [1, 2], "two": [2, 1]}))
    assert "_one" in chart
    assert "two" in chart


def test_names_become_one_line() -> None:
    assert literal("a\r\n b\u2028c") == "a b c"
    assert literal("a\x00b\x1b") == r"a\u0000b\u001b"
