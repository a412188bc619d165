"""Every folder in tests/data/cases is read as it is meant, or refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float64
from PIL import Image

from querybox.data.read import find_splits
from querybox.data.records import DetectionData

CASES = Path(__file__).parent.parent / "data" / "cases"
ONE, TWO = (650, 417), (800, 573)
FIRST, SECOND = (81, 88, 522, 408), (60, 51, 462, 499)
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is right for a folder."""

    images: Mapping[str, tuple[int, int]]
    """Its images, which are drawn, with their (width, height)."""
    boxes: Mapping[str, Sequence[tuple[str, Box]]]
    """The images of each split, with their only box."""
    findings: Mapping[str, int] = field(default_factory=dict)
    """How often each kind was found, in all splits together."""


COCO_IMAGES = {"images/raccoon-1.jpg": ONE, "images/raccoon-2.jpg": TWO}
COCO_BOXES = (("images/raccoon-1.jpg", FIRST), ("images/raccoon-2.jpg", SECOND))

TABLE = {
    "coco_bom": Case(images=COCO_IMAGES, boxes={"train": COCO_BOXES}),
    "coco_labelstudio_paths": Case(images=COCO_IMAGES, boxes={"result": COCO_BOXES}),
    "coco_normalised_boxes": Case(
        images=COCO_IMAGES,
        boxes={
            "train": [
                ("images/raccoon-1.jpg", (0.1, 0.2, 0.6, 0.7)),
                ("images/raccoon-2.jpg", (0.1, 0.2, 0.6, 0.7)),
            ]
        },
        findings={"normalized_boxes": 2},
    ),
    "coco_polygons_only": Case(
        images=COCO_IMAGES,
        boxes={"train": [("images/raccoon-1.jpg", FIRST), ("images/raccoon-2.jpg", FIRST)]},
        findings={"boxed_shape": 2},
    ),
    "coco_string_ids": Case(images=COCO_IMAGES, boxes={"train": COCO_BOXES}),
    "macos_junk": Case(
        images={"JPEGImages/raccoon-1.jpg": ONE}, boxes={"all": [("JPEGImages/raccoon-1.jpg", FIRST)]}
    ),
    "voc_filename": Case(
        images={"JPEGImages/raccoon-1.jpg": ONE}, boxes={"all": [("JPEGImages/raccoon-1.jpg", FIRST)]}
    ),
    "voc_mask_taken_as_image": Case(
        images={"photos/raccoon-1.jpg": ONE, "segmentation/raccoon-1.png": ONE},
        boxes={"all": [("photos/raccoon-1.jpg", FIRST)]},
    ),
    "voc_subfolders_lost": Case(
        images={"JPEGImages/a/1.jpg": ONE, "JPEGImages/b/1.jpg": ONE, "JPEGImages/x.jpg": ONE},
        boxes={
            "all": [(f"JPEGImages/{name}.jpg", FIRST) for name in ("a/1", "b/1", "x")],
        },
    ),
    "voc_vott_lists": Case(
        images={"JPEGImages/raccoon-1.jpg": ONE}, boxes={"train": [("JPEGImages/raccoon-1.jpg", FIRST)]}
    ),
    "voc_xml_beside_images": Case(
        images={f"{split}/raccoon-{number}_jpg.rf.0a1b2c.jpg": ONE for split, number in
                [("train", 1), ("valid", 2), ("test", 1)]},
        boxes={
            "test": [("test/raccoon-1_jpg.rf.0a1b2c.jpg", FIRST)],
            "train": [("train/raccoon-1_jpg.rf.0a1b2c.jpg", FIRST)],
            "val": [("valid/raccoon-2_jpg.rf.0a1b2c.jpg", FIRST)],
        },
    ),
    "yolo_darknet_cvat": Case(
        images={"obj_train_data/raccoon-1.jpg": ONE},
        boxes={"train": [("obj_train_data/raccoon-1.jpg", FIRST)]},
        findings={"ignored_key": 1, "moved_path": 2},
    ),
    "yolo_float_class": Case(
        images={"images/raccoon-1.jpg": ONE}, boxes={"all": [("images/raccoon-1.jpg", FIRST)]}
    ),
    "yolo_labelimg_same_folder": Case(images={"raccoon-1.jpg": ONE}, boxes={"all": [("raccoon-1.jpg", FIRST)]}),
    "yolo_polygons": Case(
        images={"images/raccoon-1.jpg": ONE},
        boxes={
            split: [("images/raccoon-1.jpg", (0.12 * 650, 0.21 * 417, 0.80 * 650, 0.97 * 417))]
            for split in ("train", "val")
        },
        findings={"boxed_shape": 2},
    ),
    "yolo_suffix_lost": Case(
        images={"images/b.jfif": ONE, "images/raccoon-1.jpg": ONE},
        boxes={
            split: [("images/b.jfif", FIRST), ("images/raccoon-1.jpg", FIRST)] for split in ("train", "val")
        },
    ),
    "yolo_val_labels_missing": Case(
        images={"images/train/raccoon-1.jpg": ONE, "images/val/raccoon-1.jpg": ONE},
        boxes={"train": [("images/train/raccoon-1.jpg", FIRST)], "val": []},
        findings={"no_labels": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_case_is_read_with_its_boxes(tmp_path: Path, name: str) -> None:
    case = TABLE[name]
    root = tmp_path / name
    shutil.copytree(CASES / name, root)
    draw(root, case.images)
    read = {split: reader() for split, reader in find_splits(root).items()}
    assert read.keys() == case.boxes.keys()
    for split, data in read.items():
        images, boxes = boxes_of(data, root)
        assert images == [image for image, _ in case.boxes[split]]
        expected = np.array([box for _, box in case.boxes[split]]).reshape(-1, 4)
        np.testing.assert_allclose(boxes, expected, atol=0.01)
    assert all([one.name for one in data.categories] == ["raccoon"] for data in read.values())
    findings = [finding for data in read.values() for finding in data.findings]
    counts = {kind: sum(one.count for one in findings if one.kind == kind) for kind in case.findings}
    assert counts == dict(case.findings)
    assert {one.kind for one in findings} == set(case.findings)


def test_the_table_has_every_case() -> None:
    assert sorted(TABLE) == sorted(path.name for path in CASES.iterdir() if path.is_dir())


def draw(root: Path, images: Mapping[str, tuple[int, int]]) -> None:
    for name, size in images.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((size[1], size[0]), dtype=np.uint8)).save(
            file, "PNG" if file.suffix == ".png" else "JPEG"
        )


def boxes_of(data: DetectionData, root: Path) -> tuple[list[str], Float64[np.ndarray, "G 4"]]:
    """Return all boxes of a split, with the names of their images."""
    names = [image.path.relative_to(root).as_posix() for image in data.images for _ in image.labels]
    return names, np.concatenate([image.boxes_xyxy for image in data.images])
