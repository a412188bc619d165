"""Masks are read with their objects, kept packed, and go with their image through every augmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotation_writers import cvat, cvat_image, labelme
from dataset_writers import Drawn, write_images, write_json, write_yolo
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.transforms import v2

from querybox.data import DataSettings, DetectionData, read_dataset, train_loader
from querybox.data.augment import augment
from querybox.data.formats.coco_mask import read_mask
from querybox.data.mosaic import mixup, mosaic
from querybox.data.phases import BatchAugmentation
from querybox.data.training_images import load_masks
from querybox.data.transforms import Sample, flip, mask_boxes, resize_sample
from querybox.data.user_transform import UserTransform
from querybox.data.windows import Window, show
from querybox.data.write import write_split
from querybox.errors import ConfigError, DataError
from querybox.masks import Rle, rasterised, resized

BLACK = (0.0, 0.0, 0.0)
TRIANGLE = [[2, 2, 14, 2, 2, 10]]


def write(folder: Path, *segmentations: object, size: tuple[int, int] = (12, 16), **values: object) -> Path:
    """Write a COCO dataset of one image, with an object for each value of `segmentation`."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 90, 90)).save(folder / "a.png")
    annotation = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 12, 8], "area": 48, "iscrowd": 0, **values}
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": size[1], "height": size[0]}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {**annotation, "id": number, "segmentation": one}
            for number, one in enumerate(segmentations, start=1)
        ],
    }
    file = folder / "train.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def kinds(data: DetectionData) -> set[str]:
    return {finding.kind for finding in data.findings}


def pixels_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the mask of polygons or run lengths, encoded by pycocotools."""
    coded = coco_mask.frPyObjects(segmentation, height, width)
    merged = coco_mask.merge(coded) if isinstance(coded, list) else coded
    return Rle((height, width), merged["counts"]).mask()


def test_polygons_and_both_run_length_encodings_are_read(tmp_path: Path) -> None:
    plain = {"size": [12, 16], "counts": [30, 5, 7, 5, 145]}
    coded = coco_mask.frPyObjects(plain, 12, 16)
    compressed = {"size": [12, 16], "counts": coded["counts"].decode()}
    data = read_dataset(write(tmp_path, TRIANGLE, plain, compressed))
    (record,) = data.images
    assert record.masks is not None
    expected = [pixels_of(TRIANGLE, 12, 16), *[pixels_of(plain, 12, 16)] * 2]
    for region, pixels in zip(record.masks, expected, strict=True):
        assert region is not None
        np.testing.assert_array_equal(rasterised(region, (12, 16)).mask(), pixels)
    masks = load_masks(record, (12, 16))
    np.testing.assert_array_equal(masks, np.stack(expected))
    halves = load_masks(record, (6, 8))
    assert halves is not None
    np.testing.assert_array_equal(halves[0], pixels_of([[1, 1, 7, 1, 1, 5]], 6, 8))
    assert halves.shape == (3, 6, 8)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [12, 16], "counts": [30, 5]},
        {"size": [16, 12], "counts": [30, 162]},
        {"size": [12, 16], "counts": "oooooooooooo"},
        {"size": [12, 16], "counts": "4\xe9"},
        {"size": [12, 16]},
        {"size": [10**9, 10**9], "counts": [0, 10**18]},
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, float("inf")]],
        "mask",
        [3],
    ],
)
def test_malformed_masks_are_reported_and_their_boxes_used(tmp_path: Path, segmentation: object) -> None:
    data = read_dataset(write(tmp_path, TRIANGLE, segmentation))
    (record,) = data.images
    assert len(record.labels) == 2
    assert record.masks is not None
    assert record.masks[1] is None
    (finding,) = [one for one in data.findings if one.kind == "malformed_mask"]
    assert "annotations[1] (id 2)" in finding.places[0].what
    assert load_masks(record, (12, 16)) is None  # trains boxes alone


def test_a_mask_of_another_size_gives_no_box(tmp_path: Path) -> None:
    """It is in pixels of another image, which may be twice as large."""
    problem = r"\[0\] \(id 1\), image 1: has no bbox, and a mask of 6x8 in 12x16 \(height x width\); expected a bbox"
    with pytest.raises(DataError, match=problem):
        read_dataset(write(tmp_path, {"size": [6, 8], "counts": [0, 48]}, bbox=None))
    (record,) = read_dataset(write(tmp_path, {"size": [12, 16], "counts": [0, 48, 144]}, bbox=None)).images
    np.testing.assert_array_equal(record.boxes_xyxy, [[0, 0, 4, 12]])


@pytest.mark.parametrize("segmentation", [None, [], {}])
def test_objects_without_masks_take_no_memory(tmp_path: Path, segmentation: object) -> None:
    data = read_dataset(write(tmp_path, segmentation))
    assert data.images[0].masks is None
    assert not kinds(data) & {"malformed_mask", "no_mask"}


def test_masks_of_crowds_are_kept_but_no_targets(tmp_path: Path) -> None:
    plain = {"size": [12, 16], "counts": [30, 5, 157]}
    (record,) = read_dataset(write(tmp_path, plain, iscrowd=1)).images
    assert record.masks == (Rle((12, 16), coco_mask.frPyObjects(plain, 12, 16)["counts"]),)
    masks = load_masks(record, (12, 16))
    assert masks is not None
    assert masks.shape == (0, 12, 16)


def test_a_split_dataset_has_the_same_masks(tmp_path: Path) -> None:
    outside = [[-3.2, 2, 14.1, 2, 2, 20.3]]
    data = read_dataset(write(tmp_path / "all", outside, {"size": [12, 16], "counts": [30, 5, 157]}))
    write_split(data, tmp_path / "part")
    (record,) = read_dataset(tmp_path / "part").images
    assert record.masks == data.images[0].masks


def disc(height: int, width: int, *, center: tuple[float, float], radius: float) -> Sample:
    """Return a black image with a white disc, which is its object."""
    y, x = np.mgrid[:height, :width] + 0.5
    mask = torch.from_numpy((x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2)[None]
    pixels = (mask * 255).byte().expand(3, -1, -1).clone()
    return Sample(pixels, mask_boxes(mask), torch.tensor([0]), mask)


def assert_on_pixels(sample: Sample) -> None:
    """Check that the only mask is where the image is white, up to one pixel of its border, and has the box."""
    assert sample.masks is not None
    (mask,), white = sample.masks, sample.pixels[0] > 127
    border = 2 * (mask.sum() + white.sum()).sqrt() + 4
    assert (mask != white).sum() <= 2 * border
    low, high = sample.boxes_xyxy[0, :2], sample.boxes_xyxy[0, 2:]
    around = mask_boxes(mask[None])[0]
    assert (around[:2] - low).abs().max() <= 1.5
    assert (around[2:] - high).abs().max() <= 1.5


def test_boxes_of_masks_by_hand() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 4, 6] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 6, 3], [6, 4, 7, 5], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "values",
    [
        {"horizontal_flip": 1.0, "vertical_flip": 1.0},
        {"crop": 1.0, "crop_scales": [60, 90], "crop_range": [30, 60]},
        {"zoom_out": 1.0},
        {"iou_crop": 1.0},
        {"zoom_out": 1.0, "iou_crop": 1.0},
        {"mosaic": 1.0},
        {"mosaic": 1.0, "stretch": True},
    ],
    ids=str,
)
def test_masks_stay_on_their_pixels_and_boxes_on_their_masks(values: dict[str, Any]) -> None:
    settings = DataSettings.parse({"crop": 0, "horizontal_flip": 0, "image_size": 64, **values})
    empty = Sample(torch.zeros(3, 50, 50, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0).long())
    empty = empty._replace(masks=torch.zeros(0, 50, 50, dtype=torch.bool))
    kept = 0
    for seed in range(12):
        sample = disc(60, 80, center=(30 + seed, 25), radius=15)
        rng = np.random.default_rng(seed)
        varied = augment(sample, settings, rng, BatchAugmentation(), draw=lambda: empty, fill=BLACK)
        assert varied.masks is not None
        assert varied.masks.shape == (len(varied.labels), *varied.pixels.shape[1:])
        if len(varied.labels):
            kept += 1
            assert_on_pixels(varied)
    assert kept >= 4


def test_a_box_that_is_cut_is_that_of_the_visible_mask() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[0, 2:6, 2:18] = True  # a tee: a bar, and a stem below its right end
    mask[0, 6:18, 14:18] = True
    sample = Sample(
        torch.zeros(3, 20, 20, dtype=torch.uint8), torch.tensor([[2.0, 2, 18, 18]]), torch.tensor([0]), mask
    )
    shown = show(sample, Window(0, 0, 13, 20), (20, 13), BLACK)
    assert shown.boxes_xyxy.tolist() == [[2, 2, 13, 6]]  # without the mask, the box reaches down to 18
    assert show(sample._replace(masks=None), Window(0, 0, 13, 20), (20, 13), BLACK).boxes_xyxy.tolist() == [
        [2, 2, 13, 18]
    ]
    assert not len(show(sample, Window(0, 7, 13, 13), (13, 13), BLACK).labels)  # of its box alone


def test_mixup_has_the_masks_of_both() -> None:
    first, second = disc(20, 40, center=(10, 10), radius=5), disc(30, 20, center=(10, 20), radius=5)
    mixed, _ = mixup([first, second], 0.5)
    assert mixed.masks is not None
    assert mixed.masks.shape == (2, 30, 40)
    torch.testing.assert_close(mask_boxes(mixed.masks), mixed.boxes_xyxy)
    half, _ = mixup([first, second._replace(masks=None)], 0.5)
    assert half.masks is None


def test_an_image_in_a_mosaic_without_masks_leaves_it_without() -> None:
    one = disc(20, 20, center=(10, 10), radius=5)
    made = mosaic(
        [one, one._replace(masks=None)], (40, 40), np.random.default_rng(0), stretch=True, fill=BLACK
    )
    assert made.masks is None
    assert len(made.labels)


def test_a_transform_of_torchvision_transforms_masks() -> None:
    first, second = disc(40, 40, center=(4, 8), radius=4), disc(40, 40, center=(24, 25), radius=6)
    both, _ = mixup([first, second], 0.5)
    transform = v2.Compose(
        [v2.RandomHorizontalFlip(1.0), v2.CenterCrop([40, 20]), v2.SanitizeBoundingBoxes()]
    )
    sample = UserTransform(transform, 1, pickled=False)(both, np.random.default_rng(0), "a.png")
    assert sample.masks is not None
    assert len(sample.labels) == 1  # the other one is outside
    assert (mask_boxes(sample.masks) - sample.boxes_xyxy).abs().max() <= 1
    with pytest.raises(ConfigError, match=r"returned masks \[1, 40, 40\] with 2 boxes"):
        UserTransform(drop_mask, 1, pickled=False)(both, np.random.default_rng(0), "a.png")


def drop_mask(image: object, target: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    return image, {**target, "masks": tv_tensors.Mask(target["masks"][:1])}


def test_batches_have_masks_when_they_are_asked_for(tmp_path: Path) -> None:
    data = read_dataset(write(tmp_path, TRIANGLE))
    settings = DataSettings(image_size=24, workers=0, crop=0, horizontal_flip=0, scales=(24,))
    (batch,) = train_loader(data, settings, batch_size=1, seed=0, masks=True)
    assert batch.targets[0].masks is not None
    assert batch.targets[0].masks.shape == (1, 24, 32)
    (plain,) = train_loader(data, settings, batch_size=1, seed=0)
    assert plain.targets[0].masks is None
    torch.testing.assert_close(batch.targets[0].boxes, plain.targets[0].boxes, rtol=0, atol=0)


def test_masks_are_flipped_and_resized_by_hand() -> None:
    sample = disc(10, 20, center=(4, 5), radius=3)
    assert sample.masks is not None
    settings = DataSettings(horizontal_flip=1.0, vertical_flip=0.0)
    flipped = flip(sample, settings, np.random.default_rng(0))
    torch.testing.assert_close(flipped.masks, sample.masks.flip(2), rtol=0, atol=0)
    doubled = resize_sample(sample, (20, 40))
    torch.testing.assert_close(
        doubled.masks, sample.masks.repeat_interleave(2, 1).repeat_interleave(2, 2), rtol=0, atol=0
    )


IMAGE = Drawn(name="a.png", size=(16, 12))


def masks_of(data: DetectionData) -> list[np.ndarray | None]:
    """Return the masks of the only image."""
    (record,) = data.images
    size = (record.height, record.width)
    return [None if one is None else rasterised(one, size).mask() for one in record.masks or ()]


def test_polygons_of_yolo_are_masks(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", [IMAGE], ["cell"])
    (labels,) = tmp_path.rglob("a.txt")
    corners = [2 / 16, 2 / 12, 14 / 16, 2 / 12, 2 / 16, 10 / 12]
    lines = ["0 " + " ".join(map(str, corners)), "0 0.5 0.5 0.25 0.5", "0 0.1 0.1 0.9 0.1 0.1 nan"]
    labels.write_text("\n".join(lines[:2]), encoding="utf-8")
    polygon, box = masks_of(read_dataset(tmp_path))
    np.testing.assert_array_equal(polygon, pixels_of(TRIANGLE, 12, 16))
    assert box is None
    labels.write_text("\n".join(lines[1:]), encoding="utf-8")
    data = read_dataset(tmp_path)
    assert data.images[0].masks is None
    assert "nan_box" in kinds(data)


def test_polygons_circles_and_groups_of_labelme_are_masks(tmp_path: Path) -> None:
    shapes: list[Any] = [
        {"label": "cell", "points": [[2, 2], [14, 2], [2, 10]], "shape_type": "polygon"},
        {"label": "cell", "points": [[8, 6], [8, 10]], "shape_type": "circle"},
        {"label": "cell", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"},
        {"label": "cell", "points": [[0, 0], [4, 0], [4, 4], [0, 4]], "shape_type": "polygon", "group_id": 1},
        {
            "label": "cell",
            "points": [[8, 8], [12, 8], [12, 12], [8, 12]],
            "shape_type": "polygon",
            "group_id": 1,
        },
    ]
    write_images(tmp_path, [IMAGE])
    write_json(tmp_path / "a.json", labelme(IMAGE, shapes))
    polygon, circle, rectangle, group = masks_of(read_dataset(tmp_path))
    np.testing.assert_array_equal(polygon, pixels_of(TRIANGLE, 12, 16))
    np.testing.assert_array_equal(circle, disc(12, 16, center=(8, 6), radius=4).masks[0])  # type: ignore[index]
    assert rectangle is None
    expected = np.zeros((12, 16), dtype=bool)
    expected[:4, :4] = expected[8:, 8:12] = True
    np.testing.assert_array_equal(group, expected)


def test_polygons_ellipses_and_masks_of_cvat_are_masks(tmp_path: Path) -> None:
    write_images(tmp_path, [IMAGE])
    shapes: list[Any] = [
        '<polygon label="cell" points="2,2;14,2;2,10"/>',
        '<ellipse label="cell" cx="8" cy="6" rx="4" ry="4"/>',
        '<mask label="cell" rle="1, 2, 3" left="4" top="5" width="3" height="2"/>',
        '<box label="cell" xtl="1" ytl="1" xbr="5" ybr="5"/>',
        '<mask label="cell" rle="1, 2" left="4" top="5" width="3" height="2"/>',
        '<mask label="cell" rle="2, 4" left="14" top="5" width="3" height="2"/>',
        '<mask label="cell" rle="x" left="4" top="5" width="3" height="2"/>',
    ]
    (tmp_path / "annotations.xml").write_text(cvat(cvat_image(IMAGE, shapes)), encoding="utf-8")
    data = read_dataset(tmp_path)
    polygon, ellipse, mask, *others = masks_of(data)
    np.testing.assert_array_equal(polygon, pixels_of(TRIANGLE, 12, 16))
    np.testing.assert_array_equal(ellipse, disc(12, 16, center=(8, 6), radius=4).masks[0])  # type: ignore[index]
    expected = np.zeros((12, 16), dtype=bool)
    expected[5, 5:7] = True  # of six pixels in two rows, the second and the third
    np.testing.assert_array_equal(mask, expected)
    assert others == [None] * 4
    assert [one.count for one in data.findings if one.kind == "malformed_mask"] == [3]


def test_empty_masks_are_reported(tmp_path: Path) -> None:
    nothing, line = {"size": [12, 16], "counts": [192]}, [[2, 2, 14, 2, 5, 2]]
    outside = [[20, 2, 30, 2, 30, 9]]
    data = read_dataset(write(tmp_path, TRIANGLE, nothing, line, outside))
    (finding,) = [one for one in data.findings if one.kind == "empty_mask"]
    assert [place.what for place in finding.places] == [f"image 1, object {number}" for number in (2, 3, 4)]
    assert not kinds(data) & {"no_mask", "malformed_mask", "misplaced_mask"}
    masks = masks_of(data)
    assert [None if mask is None else mask.any() for mask in masks] == [
        True,
        False,
        False,
        False,
    ]  # used as they are


def test_run_lengths_may_have_as_many_pixels_as_the_largest_image(tmp_path: Path) -> None:
    """Images that are larger than `MAX_PIXELS` are read on tiles, and so are their masks."""
    sides = (60_000, 50_000)
    whole, runs = sides[0] * sides[1], [20_000 * sides[0], 30_000 * sides[0]]
    mask = read_mask({"size": sides, "counts": runs})
    assert isinstance(mask, Rle)
    assert mask.size == sides
    assert mask.area == whole - runs[0]
    assert mask.part((19_999, 5, 20_001, 6)).tolist() == [[False, True]]
    assert resized(mask, sides, (2, 5)).tolist() == [[False, False, True, True, True]] * 2
    with pytest.raises(
        DataError, match=r"expected at most 4,294,967,295 pixels, as many as the largest images"
    ):
        read_mask({"size": [70_000, 70_000], "counts": [70_000**2 // 2] * 2})


def test_missing_masks_and_masks_of_other_places_are_reported(tmp_path: Path) -> None:
    far = [[15, 11, 16, 11, 16, 12, 15, 12]]
    data = read_dataset(write(tmp_path, TRIANGLE, None, far, [[0, 0, 16, 0, 16, 12, 0, 12]]))
    found = {one.kind: one for one in data.findings}
    assert found["no_mask"].count == 1
    assert found["no_mask"].places[0].what == "image 1: 1 of 4"
    # The box is 2, 2 to 14, 10: half of the image.
    assert [place.what for place in found["misplaced_mask"].places] == [
        "image 1, object 3: mask within 15, 11, 16, 12, box 2, 2, 14, 10"
    ]
    assert not kinds(read_dataset(write(tmp_path, TRIANGLE))) & {"no_mask", "misplaced_mask"}
