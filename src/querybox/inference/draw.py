"""Boxes on pictures: legible on any image size, one stable colour a class."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from querybox.inference.detections import Detections

Colour = tuple[int, int, int]
Frame = tuple[int, ...]  # left, top, right, bottom in whole pixels

# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision. Black is left out.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (240, 228, 66),
)


def draw(image: Image.Image | UInt8[np.ndarray, "h w 3"], detections: Detections) -> Image.Image:
    """Return a copy of the image with every detection's box, class name and score.

    Choose what is drawn beforehand: ``draw(image, found.above(0.7))``.

    Args:
        image: The image that was predicted on, upright, RGB.
        detections: What was found in it.
    """
    captions = [
        f"{name} {score:.2f}"
        for name, score in zip(detections.names, detections.scores.tolist(), strict=True)
    ]
    return draw_boxes(image, detections.boxes_xyxy.double().numpy(), detections.labels.numpy(), captions)


def draw_boxes(
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    boxes_xyxy: Float[np.ndarray, "N 4"],
    labels: Int[np.ndarray, " N"],
    captions: Sequence[str],
    *,
    wrong: Collection[int] | None = None,
) -> Image.Image:
    """Return a copy of the image with captioned boxes, the first on top.

    Args:
        image: RGB.
        boxes_xyxy: Corners in pixels of the image.
        labels: Class of each box, which chooses its colour.
        captions: Text of each box; an empty one has no plate.
        wrong: Places of boxes whose frames are thick and dashed; the others' are thin then, and below them.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")  # a copy
    scale = (picture.width * picture.height) ** 0.5
    line = max(1, round(scale / 190))
    font = load_font(max(9, round(scale / 46)))
    pen = ImageDraw.Draw(picture)
    frames = [tuple(round(edge) for edge in box) for box in boxes_xyxy.tolist()]
    colours = [colour_of(label) for label in labels.tolist()]
    dashed = wrong or ()
    for place in sorted(range(len(frames)), key=lambda place: (place in dashed, -place)):
        if place in dashed:
            draw_dashes(pen, frames[place], colours[place], line)
        else:
            draw_frame(pen, frames[place], colours[place], line if wrong is None else max(1, line // 2))
    # Captions come after all frames, so that no line crosses a word; the first box chooses its place first.
    plates: list[Frame] = []
    for frame, colour, caption in zip(frames, colours, captions, strict=True):
        if caption:
            plates.append(draw_caption(pen, frame, caption, colour, font, margin=line + 1, taken=plates))
    return picture


def draw_frame(pen: ImageDraw.ImageDraw, frame: Frame, colour: Colour, line: int) -> None:
    """Draw a rectangle of `line` pixels inside the frame, with a dark rim that shows on grounds of its own colour."""
    left, top, right, bottom = frame
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def draw_dashes(pen: ImageDraw.ImageDraw, frame: Frame, colour: Colour, line: int) -> None:
    """Draw a rectangle of dashes on black, about twice as thick as `line`."""
    left, top, right, bottom = frame
    pen.rectangle((left - 1, top - 1, right, bottom), outline=(0, 0, 0), width=2 * line + 2)
    for start in range(0, right - left, 8 * line):
        x, end = left + start, min(right - 1, left + start + 5 * line)
        pen.rectangle((x, top, end, top + 2 * line - 1), fill=colour)
        pen.rectangle((x, bottom - 2 * line, end, bottom - 1), fill=colour)
    for start in range(0, bottom - top, 8 * line):
        y, end = top + start, min(bottom - 1, top + start + 5 * line)
        pen.rectangle((left, y, left + 2 * line - 1, end), fill=colour)
        pen.rectangle((right - 2 * line, y, right - 1, end), fill=colour)


def draw_caption(
    pen: ImageDraw.ImageDraw,
    frame: Frame,
    caption: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    *,
    margin: int,
    taken: Sequence[Frame],
) -> Frame:
    """Write the caption on a plate at the frame, off the plates that are taken where it can, and return its place."""
    text_left, text_top, text_right, text_bottom = pen.textbbox((0, 0), caption, font=font, anchor="la")
    size = (round(text_right - text_left) + 2 * margin, round(text_bottom - text_top) + 2 * margin)
    places = caption_places(frame, size, pen.im.size)
    plate = next((place for place in places if not any(overlaps(place, other) for other in taken)), places[0])
    pen.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
    pen.text(
        (plate[0] + margin - text_left, plate[1] + margin - text_top), caption, font=font, fill=ink_on(colour)
    )
    return plate


def caption_places(frame: Frame, size: tuple[int, int], picture: tuple[int, int]) -> list[Frame]:
    """Return where a plate of `size` (width, height) may go, best first: above the frame, in its corners, below it."""
    left, top, right, bottom = frame
    width, height = size
    corners = [
        (left, top - height),
        (left, top),
        (right - width, top),
        (left, bottom - height),
        (left, bottom),
    ]
    inside = [
        (max(0, min(x, picture[0] - width)), y) for x, y in corners if 0 <= y <= max(0, picture[1] - height)
    ] or [(max(0, min(left, picture[0] - width)), 0)]
    return [(x, y, x + width, y + height) for x, y in inside]


def overlaps(one: Frame, other: Frame) -> bool:
    """Tell whether two frames share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def colour_of(label: int) -> Colour:
    """Return the colour of a class: the palette, then the palette darker, then lighter, and again."""
    colour = PALETTE[label % len(PALETTE)]
    ground, share = ((0, 0.0), (0, 0.4), (255, 0.5))[label // len(PALETTE) % 3]
    red, green, blue = (round(channel + (ground - channel) * share) for channel in colour)
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Return black or white, whichever reads better on `colour` (luma of ITU-R BT.601)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)


@functools.lru_cache(maxsize=16)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and knows European, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
