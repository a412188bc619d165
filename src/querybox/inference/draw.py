"""Draw boxes on images, legible at any image size, with a fixed colour per class."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion
from torch import Tensor

from querybox.arguments import require_type
from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.masks import Rle
from querybox.pixels import as_pixels
from querybox.plotting import import_matplotlib
from querybox.text import printable

OPACITY = 0.4
"""Opacity of a mask inside its contour, 0-1."""
Colour = tuple[int, int, int]
PixelBox = tuple[int, ...]  # left, top, right, bottom in integer pixels

# Okabe and Ito, "Color Universal Design" (2008): distinguishable with every kind of colour vision; without black.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (240, 228, 66),
)


def draw(
    image: Image.Image | UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "3 h w"], detections: Detections
) -> Image.Image:
    """Return a copy of the image with every detection's box, class name and score, and its mask and track if any.

    To draw only some of them, filter first: ``draw(image, detections.above(0.7))``.

    Args:
        image: The image that was predicted on, as for `predict`: a PIL image of 8 bits, whose EXIF orientation is
            applied, a uint8 array or a uint8 tensor, in RGB.
        detections: Its detections.

    Raises:
        ConfigError: `detections` are not those of one image, or those of an image of another size.
        ImageError: `image` is not an 8-bit image in memory, or it cannot be decoded.
    """
    require_type("draw", detections, Detections, "the Detections of one image")
    pixels = as_pixels(image).permute(1, 2, 0).cpu().numpy()  # [h, w, 3]
    height, width = pixels.shape[:2]
    if (height, width) != detections.size:
        raise ConfigError(
            f"draw got detections of {detections.size[0]}x{detections.size[1]} (height x width) for an image of "
            f"{height}x{width}; expected the image that was predicted on, in its size"
        )
    captions = [
        f"{f'#{track} ' if track else ''}{name} {score:.2f}"
        for track, name, score in zip(
            detections.tracks(), detections.names, detections.scores.tolist(), strict=True
        )
    ]
    labels = detections.labels.numpy()
    picture = Image.fromarray(pixels)
    if detections.masks is not None:
        picture = draw_masks(picture, detections.masks, labels)
    return draw_boxes(picture, detections.boxes_xyxy.double().numpy(), labels, captions)


def draw_masks(
    image: Image.Image | UInt8[np.ndarray, "h w 3"], masks: Sequence[Rle], labels: Int[np.ndarray, " N"]
) -> Image.Image:
    """Return a copy of the image with translucent masks that have an opaque contour; the first one is on top.

    Args:
        image: RGB.
        masks: Masks at the size of the image.
        labels: Class of each mask, which determines its colour.

    Raises:
        ConfigError: A mask is of another size.
    """
    pixels = np.array(image.convert("RGB") if isinstance(image, Image.Image) else image)  # a copy
    size = (pixels.shape[0], pixels.shape[1])
    line = max(1, round((size[0] * size[1]) ** 0.5 / 380))
    for mask, label in reversed(list(zip(masks, labels.tolist(), strict=True))):
        if mask.size != size:
            raise ConfigError(
                f"draw got masks of {mask.size[0]}x{mask.size[1]} (height x width) for an image of "
                f"{size[0]}x{size[1]}; expected the image that was predicted on"
            )
        if mask.box_xyxy is None:
            continue
        left, top, right, bottom = map(int, mask.box_xyxy)
        window = pixels[top:bottom, left:right]
        inside = mask.part((left, top, right, bottom))
        contour = inside & ~binary_erosion(inside, iterations=line)
        colour = np.array(colour_of(label))
        window[inside] = ((1 - OPACITY) * window[inside] + OPACITY * colour).round()
        window[contour] = colour
    return Image.fromarray(pixels)


def draw_boxes(
    image: Image.Image | UInt8[np.ndarray, "h w 3"],
    boxes_xyxy: Float[np.ndarray, "N 4"],
    labels: Int[np.ndarray, " N"],
    captions: Sequence[str],
    *,
    highlighted: Collection[int] | None = None,
) -> Image.Image:
    """Return a copy of the image with captioned boxes; the first box is drawn on top.

    Args:
        image: RGB.
        boxes_xyxy: Corners in pixels of the image.
        labels: Class of each box, which determines its colour.
        captions: Caption of each box; empty for none.
        highlighted: Indices of boxes to outline with thick dashes; the others then get a thin outline, below them.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")  # a copy
    scale = (picture.width * picture.height) ** 0.5
    line = max(1, round(scale / 190))
    font = load_font(max(9, round(scale / 46)))
    pen = ImageDraw.Draw(picture)
    boxes = [tuple(round(edge) for edge in box) for box in boxes_xyxy.tolist()]
    colours = [colour_of(label) for label in labels.tolist()]
    dashed = highlighted or ()
    for index in sorted(range(len(boxes)), key=lambda index: (index in dashed, -index)):
        if index in dashed:
            draw_dashed_rectangle(pen, boxes[index], colours[index], line)
        else:
            width = line if highlighted is None else max(1, line // 2)
            draw_rectangle(pen, boxes[index], colours[index], width)
    # Captions are drawn after all outlines, so that no line crosses a word; the first box is placed first.
    occupied: list[PixelBox] = []
    for box, colour, caption in zip(boxes, colours, captions, strict=True):
        if caption:
            occupied.append(draw_caption(pen, box, caption, colour, font, margin=line + 1, occupied=occupied))
    return picture


def draw_rectangle(pen: ImageDraw.ImageDraw, box: PixelBox, colour: Colour, line: int) -> None:
    """Outline a box with `line` pixels and a black rim, which is visible on a background of the same colour."""
    left, top, right, bottom = box
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0))
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def draw_dashed_rectangle(pen: ImageDraw.ImageDraw, box: PixelBox, colour: Colour, line: int) -> None:
    """Outline a box with dashes on black, about twice as thick as `line`."""
    left, top, right, bottom = box
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
    box: PixelBox,
    caption: str,
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    *,
    margin: int,
    occupied: Sequence[PixelBox],
) -> PixelBox:
    """Draw a caption at a box, clear of the `occupied` areas if possible, and return the area that it covers."""
    caption = printable(" ".join(caption.split()))  # a name may hold characters for which there is no layout
    text_left, text_top, text_right, text_bottom = pen.textbbox((0, 0), caption, font=font, anchor="la")
    size = (round(text_right - text_left) + 2 * margin, round(text_bottom - text_top) + 2 * margin)
    positions = caption_positions(box, size, pen.im.size)
    free = (area for area in positions if not any(overlaps(area, other) for other in occupied))
    area = next(free, positions[0])
    pen.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), fill=colour)
    pen.text(
        (area[0] + margin - text_left, area[1] + margin - text_top),
        caption,
        font=font,
        fill=text_colour(colour),
    )
    return area


def caption_positions(box: PixelBox, size: tuple[int, int], image_size: tuple[int, int]) -> list[PixelBox]:
    """Return the possible areas of a caption, best first: above the box, in its corners, below it.

    Args:
        box: The box.
        size: (width, height) of the caption.
        image_size: (width, height) of the image.
    """
    left, top, right, bottom = box
    width, height = size
    corners = [
        (left, top - height),
        (left, top),
        (right - width, top),
        (left, bottom - height),
        (left, bottom),
    ]
    inside = [
        (max(0, min(x, image_size[0] - width)), y)
        for x, y in corners
        if 0 <= y <= max(0, image_size[1] - height)
    ] or [(max(0, min(left, image_size[0] - width)), 0)]
    return [(x, y, x + width, y + height) for x, y in inside]


def overlaps(a: PixelBox, b: PixelBox) -> bool:
    """Return whether two boxes share a pixel."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def colour_of(label: int) -> Colour:
    """Return the colour of a class; classes cycle through the palette, a darker and a lighter version of it."""
    colour = PALETTE[label % len(PALETTE)]
    target, weight = ((0, 0.0), (0, 0.4), (255, 0.5))[label // len(PALETTE) % 3]
    red, green, blue = (round(channel + (target - channel) * weight) for channel in colour)
    return red, green, blue


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever is more legible on `background` (luma of ITU-R BT.601)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)


@functools.lru_cache(maxsize=16)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and covers Latin, Greek, Cyrillic and Arabic."""
    folder = Path(import_matplotlib().get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)
