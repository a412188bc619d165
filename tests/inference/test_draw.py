from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from querybox.data.records import ImageRecord
from querybox.errors import ConfigError, ImageError
from querybox.evaluation.confusion import assign
from querybox.evaluation.draw import draw_errors
from querybox.evaluation.errors import find_errors
from querybox.inference.detections import Detections
from querybox.inference.draw import PALETTE, colour_of, draw, draw_boxes, text_colour
from querybox.structures import Category

CATEGORIES = (Category(id=1, name="cat"), Category(id=2, name="Gürteltier"))


def found(boxes: list[list[float]], labels: list[int], size: tuple[int, int] = (200, 300)) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.5, len(boxes)),
        labels=torch.tensor(labels, dtype=torch.long),
        categories=CATEGORIES,
        size=size,
    )


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value = picture.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def test_frames_lie_on_the_boxes() -> None:
    image = grey(300, 200)
    picture = draw(image, found([[50, 60, 150, 160], [200, 100, 280, 180]], [0, 1]))
    assert pixel(picture, 50, 100) == pixel(picture, 149, 100) == pixel(picture, 100, 159) == colour_of(0)
    assert pixel(picture, 200, 140) == colour_of(1)
    assert pixel(picture, 100, 110) == (128, 128, 128)  # nothing is painted over
    assert image.tobytes() == grey(300, 200).tobytes()  # the original stays


def test_line_and_letters_grow_with_the_image() -> None:
    def thickness(scale: int) -> int:
        boxes = np.array([[100.0, 60.0, 200.0, 160.0]]) * scale
        picture = np.asarray(draw_boxes(grey(300 * scale, 200 * scale), boxes, np.array([0]), [""]))
        return int((picture[110 * scale, : 150 * scale] == colour_of(0)).all(-1).sum())

    assert thickness(8) >= 4 * thickness(1) > 0


def test_arrays_and_gray_images_are_drawn_on() -> None:
    detections = found([[50, 60, 150, 160]], [0])
    array = np.full((200, 300, 3), 128, dtype=np.uint8)
    assert draw(array, detections).tobytes() == draw(grey(300, 200), detections).tobytes()
    assert draw(Image.new("L", (300, 200), 128), detections).tobytes() == draw(array, detections).tobytes()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert draw(tensor, detections).tobytes() == draw(tensor.contiguous(), detections).tobytes()
    assert draw(tensor, detections).tobytes() == draw(array, detections).tobytes()
    assert (array == 128).all()  # the original stays


def test_a_turned_image_is_drawn_on_upright() -> None:
    """The picture that comes out has no orientation any more: it can be drawn on once more."""
    detections = found([[50, 60, 150, 160]], [0])
    sideways = grey(200, 300)
    sideways.getexif()[ExifTags.Base.Orientation] = 6
    sideways.info["exif"] = sideways.getexif().tobytes()
    picture = draw(sideways, detections)
    assert picture.tobytes() == draw(grey(300, 200), detections).tobytes()
    assert draw(picture, found([], [])).tobytes() == picture.tobytes()
    assert sideways.size == (200, 300)  # the original stays


def test_an_image_of_another_size_is_refused() -> None:
    detections = found([[50, 60, 150, 160]], [0])
    for image in (grey(200, 300), np.zeros((100, 100, 3), np.uint8)):
        with pytest.raises(
            ConfigError, match=r"draw got detections of 200x300 \(height x width\) for an image of"
        ):
            draw(image, detections)
    with pytest.raises(ImageError, match="got a PIL image of mode F"):
        draw(Image.new("F", (300, 200)), detections)


def test_nothing_found_leaves_the_image_as_it_is() -> None:
    assert draw(grey(300, 200), found([], [])).tobytes() == grey(300, 200).tobytes()


def test_captions_keep_off_each_other() -> None:
    """Two boxes with almost one corner: the second caption goes elsewhere, so both plates are there in full."""
    boxes = [[50.0, 60.0, 150.0, 160.0], [52.0, 60.0, 150.0, 160.0]]
    one = np.asarray(draw(grey(300, 200), found(boxes[:1], [0])))
    both = np.asarray(draw(grey(300, 200), found(boxes, [0, 1])))
    plate = (one[40:59] != 128).any(-1)
    assert plate.any()
    assert (one[40:59][plate] == both[40:59][plate]).all()


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_any_box_on_any_image(width: int, height: int, boxes: list[tuple[float, ...]]) -> None:
    corners = [
        [min(x1, x2) * width, min(y1, y2) * height, max(x1, x2) * width, max(y1, y2) * height]
        for x1, y1, x2, y2 in boxes
    ]
    picture = draw(grey(width, height), found(corners, [1] * len(corners), (height, width)))
    assert picture.size == (width, height)


def test_colours() -> None:
    colours = [colour_of(label) for label in range(3 * len(PALETTE))]
    assert len(set(colours)) == len(colours)
    assert tuple(colours[: len(PALETTE)]) == PALETTE
    assert colour_of(3 * len(PALETTE)) == colour_of(0)


@pytest.mark.parametrize("label", range(3 * len(PALETTE)))
def test_captions_can_be_read(label: int) -> None:
    """Contrast of letters and plate is at least 3:1, the least that WCAG 2 allows large text."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(colour_of(label)), luminance(text_colour(colour_of(label)))])
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_errors_of_objects_and_of_detections() -> None:
    record = ImageRecord(
        id=1,
        path=Path("1.jpg"),
        width=300,
        height=200,
        boxes_xyxy=np.array(
            [[50.0, 60.0, 150.0, 160.0], [160.0, 20.0, 220.0, 80.0], [200.0, 90.0, 290.0, 190.0]]
        ),
        labels=np.array([1, 0, 1]),
        crowd=np.array([False, False, True]),
        areas=np.array([1e4, 3600.0, 9000.0]),
    )
    detections = found([[50, 60, 150, 160], [160, 20, 220, 80], [10, 10, 40, 40]], [0, 0, 1])
    left, right = draw_errors(
        grey(300, 200), record, detections, find_errors(record, assign(record, detections))
    )
    captions = ["Cls Gürteltier", "", "Gürteltier (crowd)"]
    objects = draw_boxes(grey(300, 200), record.boxes_xyxy, record.labels, captions, highlighted=[0])
    assert left.tobytes() == objects.tobytes()
    boxes, labels = detections.boxes_xyxy.double().numpy(), detections.labels.numpy()
    captions = ["Cls cat 0.90", "", "Bkg Gürteltier 0.50"]
    assert (
        right.tobytes() == draw_boxes(grey(300, 200), boxes, labels, captions, highlighted=[0, 2]).tobytes()
    )


def test_wrong_frames_are_thick_and_dashed_without_any_colour() -> None:
    boxes, labels = np.array([[50.0, 60.0, 150.0, 160.0], [160.0, 60.0, 290.0, 160.0]]), np.array([0, 0])
    picture = draw_boxes(grey(900, 600), 3 * boxes, labels, ["", ""], highlighted=[0])
    dark = np.asarray(picture.convert("L")) < 64
    bright = (np.asarray(picture) == colour_of(0)).all(-1)

    def changes(row: int, left: int, right: int) -> int:
        return int(np.abs(np.diff(dark[row, left:right].astype(int))).sum())

    assert changes(3 * 60 + 1, 3 * 50, 3 * 150) > 6  # along its upper edge, the wrong one
    assert changes(3 * 60, 3 * 160, 3 * 290) == 0
    across = slice(3 * 60 - 3, 3 * 60 + 20)
    assert bright[across, 3 * 50 + 2].sum() >= 2 * bright[across, 3 * 200].sum() > 0


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=3))
@settings(max_examples=20)
def test_any_box_can_be_wrong(boxes: list[tuple[float, ...]]) -> None:
    corners = [
        [min(x1, x2) * 40, min(y1, y2) * 30, max(x1, x2) * 40, max(y1, y2) * 30] for x1, y1, x2, y2 in boxes
    ]
    box_array = np.array(corners).reshape(-1, 4)
    everything = range(len(boxes))
    picture = draw_boxes(
        grey(40, 30),
        box_array,
        np.zeros(len(boxes), dtype=int),
        ["B cat"] * len(boxes),
        highlighted=everything,
    )
    assert picture.size == (40, 30)
