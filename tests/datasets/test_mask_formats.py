"""Masks of annotation tools and of Pascal VOC."""

from __future__ import annotations

import base64
import io
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_writers import label_studio_task, labelme
from dataset_writers import Drawn, write_images, write_json, write_voc
from PIL import Image

from querybox.data import DetectionData, read_dataset
from querybox.data.bitmaps import place_bitmap, read_bitmap
from querybox.data.formats.label_studio_brush import read_brush
from querybox.data.read import read_split
from querybox.data.write import write_split
from querybox.errors import DataError
from querybox.masks import Rle, rasterised
from querybox.polygons import Polygons

IMAGE = Drawn(name="a.png", size=(16, 12), objects=(("cell", (1, 1, 5, 4)), ("cell", (8, 2, 12, 10))))
SQUARE = [[2, 3], [8, 3], [8, 9], [2, 9]]


def masks_of(data: DetectionData) -> list[np.ndarray | None]:
    """Return the masks of the first image."""
    record = data.images[0]
    size = (record.height, record.width)
    return [None if one is None else rasterised(one, size).mask() for one in record.masks or ()]


def problems(data: DetectionData, kind: str = "malformed_mask") -> list[str]:
    return [place.what for finding in data.findings if finding.kind == kind for place in finding.places]


def square(*holes: tuple[slice, slice]) -> np.ndarray:
    """Return the pixels of `SQUARE`, without those of `holes`."""
    mask = np.zeros((12, 16), dtype=bool)
    mask[3:9, 2:8] = True
    for hole in holes:
        mask[hole] = False
    return mask


def png(pixels: np.ndarray, mode: str = "1") -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(stream, "PNG", transparency=0)
    else:
        image.convert(mode).save(stream, "PNG")
    return stream.getvalue()


TEE = np.array([[1, 1, 1], [0, 1, 0]], dtype=bool)


@pytest.mark.parametrize("content", [png(TEE), png(TEE, "L"), png(TEE.astype(np.uint8), "P")])
def test_pixels_of_bitmaps(content: bytes) -> None:
    np.testing.assert_array_equal(read_bitmap(content), TEE)


def test_a_transparent_pixel_is_outside() -> None:
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[..., 3] = TEE * 9
    np.testing.assert_array_equal(read_bitmap(png(pixels, "RGBA")), TEE)


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (11, 0), (0, 14)])
def test_a_bitmap_that_leaves_its_image(corner: tuple[int, int]) -> None:
    with pytest.raises(
        DataError, match=r"a bitmap of 2x3 \(height x width\) at x .* is not in the image of 12x16"
    ):
        place_bitmap(TEE, corner, (12, 16))


def test_bitmaps_larger_than_an_image_are_not_decoded() -> None:
    huge = png(np.zeros((1, 1), dtype=bool))
    # Width and height in the header, whose checksum Pillow checks.
    header = b"IHDR" + (10**5).to_bytes(4) + (10**5).to_bytes(4) + huge[24:29]
    huge = huge[:12] + header + zlib.crc32(header).to_bytes(4) + huge[33:]
    with pytest.raises(DataError, match=r"cannot be read as a PNG \(Image size \(10000000000 pixels\)"):
        read_bitmap(huge)


def test_a_part_of_a_mask_is_the_whole_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((7, 9), dtype=bool)
        mask[1:, 2:6] = rng.random((6, 4)) < 0.6
        assert Rle.of_part(mask[1:, 2:6], (1, 2), (7, 9)) == Rle.of(mask) == Rle.of_part(mask, (0, 0), (7, 9))


def test_the_union_of_masks() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((3, 7, 9)) < 0.3
    assert Rle.union([Rle.of(mask) for mask in masks]) == Rle.of(np.logical_or.reduce(masks))


def test_masks_of_labelme(tmp_path: Path) -> None:
    mask = {"label": "cell", "shape_type": "mask", "points": [[4, 5], [6, 6]]}
    tee = {**mask, "mask": base64.b64encode(png(TEE)).decode()}
    part = {"label": "cell", "points": SQUARE, "shape_type": "polygon", "group_id": 1}
    far = {**tee, "points": [[14, 5], [16, 6]]}
    shapes: list[dict[str, Any]] = [
        tee,
        mask,
        {**tee, "group_id": 1, "points": [[10, 1], [12, 2]]},
        part,
        far,
    ]
    shapes += [{**mask, "mask": "no PNG"}, {**mask, "mask": "\xe9"}]
    write_images(tmp_path, [IMAGE])
    write_json(tmp_path / "a.json", labelme(IMAGE, shapes))
    data = read_dataset(tmp_path)
    own, missing, group, *others = masks_of(data)
    expected = np.zeros((12, 16), dtype=bool)
    expected[5:7, 4:7] = TEE
    np.testing.assert_array_equal(own, expected)
    both = square()
    both[1:3, 10:13] = TEE
    np.testing.assert_array_equal(group, both)
    assert missing is None
    assert others == [None] * 3
    outside, no_png, no_base64 = problems(data)
    assert "shape 5: a bitmap of 2x3 (height x width) at x 14, y 5" in outside
    assert "shape 6: " in no_png
    assert "shape 7: " in no_base64


def test_boxes_of_masks_of_labelme_are_those_of_the_pixels(tmp_path: Path) -> None:
    # In the file, the second point of a mask is in its last pixel; or behind it, as some versions write it.
    ends = {(4, 5, 6, 6): TEE, (4, 5, 7, 7): TEE, (9, 9, 9, 9): TEE[:1, 1:2]}
    shapes = [
        {"label": "cell", "shape_type": "mask", "points": [[left, top], [right, bottom]], "mask": content}
        for (left, top, right, bottom), pixels in ends.items()
        for content in [base64.b64encode(png(pixels)).decode()]
    ]
    write_images(tmp_path, [IMAGE])
    write_json(tmp_path / "a.json", labelme(IMAGE, shapes))
    (image,) = read_dataset(tmp_path).images
    assert image.boxes_xyxy.tolist() == [[4, 5, 7, 7], [4, 5, 7, 7], [9, 9, 10, 10]]


@pytest.mark.parametrize("hole", [[[0, 0], [16, 0], [16, 12], [0, 12]], [[12, 1], [15, 1], [15, 3]]])
def test_a_hole_beyond_the_outline_is_no_part_of_the_object(tmp_path: Path, hole: list[list[float]]) -> None:
    points = {"exterior": SQUARE, "interior": [[], hole]}
    polygon = {"classTitle": "cell", "geometryType": "polygon", "points": points}
    write_images(tmp_path / "ds" / "img", [IMAGE])
    write_json(
        tmp_path / "ds" / "ann" / "a.png.json", {"size": {"height": 12, "width": 16}, "objects": [polygon]}
    )
    data = read_dataset(tmp_path)
    assert masks_of(data) == []
    assert data.images[0].boxes_xyxy.tolist() == [[2, 3, 8, 9]]
    (problem,) = problems(data)
    assert problem.endswith("object 1: a hole extends beyond the outline; expected holes inside")


def test_a_polygon_may_reach_as_far_as_numbers_do() -> None:
    around = [-1e308, -1e308, 1e308, -1e308, 1e308, 1e308, -1e308, 1e308]
    assert rasterised(Polygons.of([around]), (12, 16)).mask().all()


def test_masks_of_supervisely(tmp_path: Path) -> None:
    hole = [[4, 5], [6, 5], [6, 7], [4, 7]]
    polygon = {
        "classTitle": "cell",
        "geometryType": "polygon",
        "points": {"exterior": SQUARE, "interior": [hole]},
    }
    line = {**polygon, "geometryType": "line"}

    def bitmap(content: bytes, origin: list[float]) -> dict[str, Any]:
        data = base64.b64encode(zlib.compress(content)).decode()
        return {"classTitle": "cell", "geometryType": "bitmap", "bitmap": {"data": data, "origin": origin}}

    content = png(TEE.astype(np.uint8), "P")
    objects = [polygon, line, bitmap(content, [4, 5]), bitmap(content, [14, 5]), bitmap(content[:40], [4, 5])]
    write_images(tmp_path / "ds" / "img", [IMAGE])
    write_json(
        tmp_path / "ds" / "ann" / "a.png.json", {"size": {"height": 12, "width": 16}, "objects": objects}
    )
    data = read_dataset(tmp_path)
    polygons, of_line, tee, *others = masks_of(data)
    np.testing.assert_array_equal(polygons, square((slice(5, 7), slice(4, 6))))
    assert of_line is None
    expected = np.zeros((12, 16), dtype=bool)
    expected[5:7, 4:7] = TEE
    np.testing.assert_array_equal(tee, expected)
    assert others == [None, None]
    outside, truncated = problems(data)
    assert "object 4: a bitmap of 2x3" in outside
    assert "object 5: a bitmap: cannot be read as a PNG" in truncated


def test_masks_of_via(tmp_path: Path) -> None:
    shapes: list[dict[str, Any]] = [
        {"name": "polygon", "all_points_x": [2, 8, 8, 2], "all_points_y": [3, 3, 9, 9]},
        {"name": "circle", "cx": 8, "cy": 6, "r": 4},
        {"name": "ellipse", "cx": 8, "cy": 6, "rx": 6, "ry": 3, "theta": np.pi / 2},
        {"name": "rect", "x": 1, "y": 1, "width": 4, "height": 4},
        {"name": "polyline", "all_points_x": [2, 8, 8], "all_points_y": [3, 3, 9]},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"class": "cell"}} for shape in shapes]
    write_images(tmp_path, [IMAGE])
    write_json(tmp_path / "via.json", {"a.png1": {"filename": "a.png", "regions": regions}})
    polygon, circle, ellipse, *others = masks_of(read_dataset(tmp_path))
    np.testing.assert_array_equal(polygon, square())
    y, x = np.mgrid[:12, :16] + 0.5
    np.testing.assert_array_equal(circle, (x - 8) ** 2 + (y - 6) ** 2 < 16)
    assert ellipse is not None
    upright = ((x - 8) / 3) ** 2 + ((y - 6) / 6) ** 2 < 1  # rotated by a quarter
    assert (ellipse != upright).sum() <= 4  # at the border
    assert others == [None, None]


def pack_brush(mask: np.ndarray) -> list[int]:
    """Return a mask as Label Studio writes it: blocks of repeated values, and of single ones where they change."""
    values = np.repeat(mask.ravel()[:, None] * 255, 4, axis=1).ravel()
    sizes = (2, 4, 8, 15)
    text = f"{len(values):032b}{7:05b}" + "".join(f"{size:04b}" for size in sizes)
    changes = (np.flatnonzero(np.diff(values)) + 1).tolist()
    for start, stop in itertools.pairwise(sorted({*changes, *range(0, len(values), 2**16), len(values)})):
        which = next(number for number, size in enumerate(sizes) if stop - start <= 2 ** (size + 1))
        length = f"{which:02b}{stop - start - 1:0{sizes[which] + 1}b}"
        one = f"{values[start]:08b}"
        text += f"0{length}" + one * (stop - start) if stop - start <= 8 else f"1{length}{one}"
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def test_brushes_are_unpacked() -> None:
    rng = np.random.default_rng(0)
    for mask in (
        square(),
        rng.random((12, 16)) < 0.5,
        np.zeros((1, 1), dtype=bool),
        np.ones((300, 400), dtype=bool),
    ):
        np.testing.assert_array_equal(read_brush(pack_brush(mask), mask.shape).mask(), mask)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "end too early"),
        (pack_brush(square())[:-4], "end too early"),
        ([256], "are not bytes"),
        ([-1], "are not bytes"),
        ([255] * 40, r"a brush has 4294967295 values; expected 4 for each pixel of 12x16"),
        (pack_brush(square().T[:, :-1]), "a brush has 704 values"),
    ],
)
def test_malformed_brushes(content: Sequence[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_brush(content, (12, 16))


def test_a_brush_that_is_longer_than_its_image() -> None:
    packed = pack_brush(np.ones((1, 2), dtype=bool))  # 8 values in one block
    head = (4).to_bytes(4)
    with pytest.raises(DataError, match="add up to 8 values; expected 4"):
        read_brush([*head, *packed[4:]], (1, 1))


def test_masks_of_label_studio(tmp_path: Path) -> None:
    def region(number: int, kind: str, **value: Any) -> dict[str, Any]:
        return {
            "id": str(number),
            "type": kind,
            "value": {**value, kind: ["cell"]},
            "original_width": 16,
            "original_height": 12,
        }

    percent = [[100 * x / 16, 100 * y / 12] for x, y in SQUARE]
    box = {"x": 12.5, "y": 25, "width": 25, "height": 50}
    regions = [
        region(1, "polygonlabels", points=percent),
        region(2, "ellipselabels", x=50, y=50, radiusX=25, radiusY=100 / 3),
        region(3, "brushlabels", format="rle", rle=pack_brush(square())),
        region(4, "rectanglelabels", **box),
    ]
    write_images(tmp_path, [IMAGE])
    write_json(tmp_path / "tasks.json", [label_studio_task(IMAGE, regions)])
    data = read_dataset(tmp_path)
    polygon, ellipse, brush, rectangle = masks_of(data)
    y, x = np.mgrid[:12, :16] + 0.5
    np.testing.assert_array_equal(polygon, square())
    np.testing.assert_array_equal(ellipse, (x - 8) ** 2 + (y - 6) ** 2 < 16)
    np.testing.assert_array_equal(brush, square())
    assert rectangle is None
    assert data.images[0].boxes_xyxy[2].tolist() == [2, 3, 8, 9]
    write_json(tmp_path / "tasks.json", [label_studio_task(IMAGE, [region(1, "brushlabels", rle=[1, 2])])])
    assert (
        "region 1: the run lengths of a brush end too early"
        in problems(read_split(tmp_path, None), "malformed")[0]
    )


def write_voc_masks(root: Path, indices: np.ndarray, mode: str = "P") -> DetectionData:
    """Write a dataset of one image with masks, and read it."""
    write_voc(root, "train", [IMAGE])
    (root / "SegmentationObject").mkdir(exist_ok=True)
    image = Image.fromarray(indices)
    if mode == "P":
        image.putpalette(list(np.arange(768) % 251))
    image.convert(mode).save(root / "SegmentationObject" / "a.png")
    return read_dataset(root, "train")


def test_masks_of_voc(tmp_path: Path) -> None:
    indices = np.zeros((12, 16), dtype=np.uint8)
    indices[1:4, 1:5], indices[2:10, 8:12], indices[2:10, 12] = 1, 2, 255
    data = write_voc_masks(tmp_path, indices)
    assert not data.findings
    first, second = masks_of(data)
    np.testing.assert_array_equal(first, indices == 1)
    np.testing.assert_array_equal(second, indices == 2)
    write_split(data, tmp_path / "part")
    assert read_dataset(tmp_path / "part").images[0].masks == data.images[0].masks


@pytest.mark.parametrize(
    ("change", "found", "messages"),
    [
        ((1, 2), [False, False], ["object 1 has an IoU of 0.00", "object 2 has an IoU of 0.00"]),
        ((2, 3), [True, False], ["has an object 3; the XML file has 2"]),
        ((2, 0), [True, False], []),
    ],
)
def test_masks_of_voc_in_another_order(
    tmp_path: Path, change: tuple[int, int], found: list[bool], messages: list[str]
) -> None:
    indices = np.zeros((12, 16), dtype=np.uint8)
    indices[1:4, 1:5], indices[2:10, 8:12] = 1, 2
    if change == (1, 2):
        indices = np.array([0, 2, 1], dtype=np.uint8)[indices]
    else:
        indices[indices == change[0]] = change[1]
    data = write_voc_masks(tmp_path, indices)
    assert [mask is not None for mask in masks_of(data)] == (found if any(found) else [])
    for problem, message in zip(problems(data), messages, strict=True):
        assert message in problem


@pytest.mark.parametrize(
    ("shape", "mode", "message"),
    [((12, 16), "RGB", "is in mode RGB; expected a palette"), ((10, 16), "P", "a mask of 10x16 in 12x16")],
)
def test_images_of_voc_that_are_no_masks(
    tmp_path: Path, shape: tuple[int, int], mode: str, message: str
) -> None:
    indices = np.zeros(shape, dtype=np.uint8)
    indices[1:4, 1:5] = 1
    data = write_voc_masks(tmp_path, indices, mode)
    assert data.images[0].masks is None
    assert message in problems(data)[0]
    assert len(data.images[0].labels) == 2
