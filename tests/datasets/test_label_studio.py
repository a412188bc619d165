from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_writers import label_studio_box, label_studio_task, write_label_studio
from dataset_writers import Drawn, write_images, write_json

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.jpg", size=(80, 60), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 80, 60))]),
    Drawn(name="b.jpg", size=(30, 40)),
]
A = IMAGES[0]


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": 80, "original_height": 60, "image_rotation": 0}
    return {"id": "r", "type": kind, **size, "value": value, **more}


def write_regions(root: Path, *regions: dict[str, Any]) -> None:
    write_images(root / "images", IMAGES[:1])
    write_json(root / "export.json", [label_studio_task(A, regions)])


def test_percent_become_pixels(tmp_path: Path) -> None:
    write_label_studio(tmp_path, "export", IMAGES)
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert [image.path for image in data.images] == [
        tmp_path / "images" / name for name in ("a.jpg", "b.jpg")
    ]
    assert (data.images[0].width, data.images[0].height, data.images[0].size_stated) == (80, 60, True)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[1, 2, 11, 22], [5, 5, 80, 60]], atol=1e-9)
    assert data.images[0].labels.tolist() == [1, 0]
    assert len(data.images[1].labels) == 0
    assert not data.findings


@pytest.mark.parametrize(
    "path",
    [
        "/data/local-files/?d=photos%2Fmy%20dog.jpg",
        "/data/local-files/?d=C:\\photos\\my dog.jpg",
        "s3://bucket/photos/my dog.jpg",
        "https://example.com/photos/my%20dog.jpg?key=1",
        "/data/upload/3/5f6a7b8c-my dog.jpg",
    ],
)
def test_paths_of_images(tmp_path: Path, path: str) -> None:
    write_images(tmp_path / "images", [Drawn(name="my dog.jpg", size=(80, 60))])
    for key in ("image", "photo"):
        task = {**label_studio_task(A, []), "data": {"title": "My dog", key: path}}
        write_json(tmp_path / "export.json", [task])
        (image,) = read_dataset(tmp_path).images
        assert image.path == tmp_path / "images" / "my dog.jpg"


def test_boxes_are_those_of_the_image_whose_tag_they_name(tmp_path: Path) -> None:
    """With two images in a task, those of the second were given to the first."""
    write_images(tmp_path / "images", IMAGES)
    first, second = (
        {**label_studio_box(A, "dog", (40, 20, 60, 30)), "to_name": name} for name in ("before", "after")
    )
    text = {"id": "t", "type": "labels", "value": {"start": 0, "end": 3, "labels": ["x"]}, "to_name": "title"}
    task = {**label_studio_task(A, [second, text]), "data": {"before": "b.jpg", "after": "a.jpg"}}
    write_json(tmp_path / "export.json", [task])
    data = read_split(tmp_path, None)
    assert [(image.path.name, len(image.labels)) for image in data.images] == [("a.jpg", 1)]
    write_json(tmp_path / "export.json", [{**label_studio_task(A, [first, second]), "data": task["data"]}])
    with pytest.raises(
        DataError, match=r"\[0\]: has regions of 2 images \(after, before\); expected a task for"
    ):
        read_dataset(tmp_path)


def test_a_rectangle_rotates_clockwise_about_its_upper_left_corner(tmp_path: Path) -> None:
    write_regions(
        tmp_path,
        label_studio_box(A, "dog", (40, 20, 60, 30), rotation=90),
        label_studio_box(A, "dog", (40, 20, 60, 30), rotation=30),
    )
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    tilted = [40 - 10 * sin, 20, 40 + 20 * cos, 20 + 20 * sin + 10 * cos]
    data = read_split(tmp_path, None)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[30, 20, 40, 40], tilted], atol=1e-9)
    assert [(finding.kind, finding.count) for finding in data.findings] == [("boxed_shape", 2)]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        (
            region("polygonlabels", {"points": [[10, 20], [30, 5], [25, 40]], "polygonlabels": ["dog"]}),
            [8, 3, 24, 24],
        ),
        (
            region(
                "ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}
            ),
            [32, 18, 48, 42],
        ),
        (region("labels", {"x": 10, "y": 20, "width": 30, "height": 40, "labels": ["dog"]}), [8, 12, 32, 36]),
    ],
)
def test_shapes_become_boxes(tmp_path: Path, shape: dict[str, Any], box: list[float]) -> None:
    write_regions(tmp_path, shape)
    np.testing.assert_allclose(read_dataset(tmp_path).images[0].boxes_xyxy, [box], atol=1e-9)


def test_the_class_of_a_region_may_be_in_another_one(tmp_path: Path) -> None:
    box = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0}
    write_regions(
        tmp_path,
        region("rectangle", box),
        region("labels", {**box, "labels": ["dog"]}),
        region("choices", {"choices": ["blurred"]}),
        {"type": "relation", "from_id": "r", "to_id": "r", "direction": "right"},
    )
    data = read_dataset(tmp_path)
    assert data.num_objects == 1
    assert not data.findings


def test_without_sizes_boxes_are_relative_to_the_image(tmp_path: Path) -> None:
    box = label_studio_box(A, "dog", (1, 2, 11, 22))
    write_regions(tmp_path, {key: box[key] for key in ("id", "type", "value")})
    (image,) = read_dataset(tmp_path).images
    np.testing.assert_allclose(image.boxes_xyxy, [[1, 2, 11, 22]], atol=1e-9)
    assert (image.width, image.height, image.size_stated) == (80, 60, False)


def test_keypoints_are_counted(tmp_path: Path) -> None:
    write_regions(
        tmp_path,
        region("keypointlabels", {"x": 10, "y": 20, "width": 0.5, "keypointlabels": ["dog"]}),
        label_studio_box(A, "dog", (1, 2, 11, 22)),
    )
    data = read_split(tmp_path, None)
    assert [(finding.kind, finding.count) for finding in data.findings] == [("unsupported_shape", 1)]
    assert data.num_objects == 1


def test_tasks_without_or_with_several_annotations(tmp_path: Path) -> None:
    write_images(tmp_path, [A, *(Drawn(name=f"{n}.jpg", size=(80, 60)) for n in range(3))])
    first, second = (
        {"id": n, "result": [label_studio_box(A, name, (n, 2, 11, 22))]}
        for n, name in ((1, "dog"), (2, "cat"))
    )
    cancelled = {**first, "was_cancelled": True}
    annotations: tuple[list[dict[str, Any]], ...] = ([first, second], [], [cancelled], [cancelled, second])
    tasks = [
        {"id": n, "data": {"image": name}, "annotations": items, "predictions": [first]}
        for n, (name, items) in enumerate(zip(("a.jpg", "0.jpg", "1.jpg", "2.jpg"), annotations, strict=True))
    ]
    write_json(tmp_path / "export.json", tasks)
    data = read_split(tmp_path, None)
    assert [image.path.name for image in data.images] == ["a.jpg", "2.jpg"]
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[1, 2, 11, 22]])
    np.testing.assert_allclose(data.images[1].boxes_xyxy, [[2, 2, 11, 22]])
    assert {finding.kind: finding.count for finding in data.findings} == {
        "unlabeled_image": 2,
        "several_annotations": 1,
    }


def test_completions_of_old_versions(tmp_path: Path) -> None:
    write_images(tmp_path, [A])
    box = label_studio_box(A, "dog", (1, 2, 11, 22))
    write_json(tmp_path / "export.json", [{"data": {"image": "a.jpg"}, "completions": [{"result": [box]}]}])
    np.testing.assert_allclose(read_dataset(tmp_path).images[0].boxes_xyxy, [[1, 2, 11, 22]])


def test_the_minimal_form(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    boxes = [label_studio_box(A, *item) for item in A.objects]
    flat = [{**box.pop("value"), "original_width": 80, "original_height": 60} for box in boxes]
    entries = [{"image": "a.jpg", "id": 1, "box": flat, "annotator": 1}, {"image": "b.jpg", "id": 2}]
    write_json(tmp_path / "export.json", entries)
    data = read_dataset(tmp_path)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[1, 2, 11, 22], [5, 5, 80, 60]], atol=1e-9)
    assert [image.path.name for image in data.images] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            region("rectangle", {"x": 1, "y": 1, "width": 1, "height": 1}),
            "region 1: rectangle without a class",
        ),
        (region("rectanglelabels", {"rectanglelabels": []}), "region 1: List should have at least 1 item"),
        (
            region("rectanglelabels", {"x": "left", "rectanglelabels": ["dog"]}),
            "region 1: x: Input should be",
        ),
        (
            region("rectanglelabels", {"x": 1, "rotation": 1e999, "rectanglelabels": ["dog"]}),
            "region 1: rotation: Input should be a finite number",
        ),
        (
            region("rectanglelabels", {"x": True, "rectanglelabels": ["dog"]}),
            "region 1: x: Input should be a number, not true or false",
        ),
        (region(7, {}), "region 1: type: Input should be a valid string"),  # type: ignore[arg-type]
        (region("rectanglelabels", {}, image_rotation=90), "region 1: the image is rotated by 90 degrees"),
        (
            {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "rotation": 5, "rectanglelabels": ["dog"]}},
            "region 1: is rotated; expected 'original_width' and 'original_height'",
        ),
    ],
)
def test_faults_of_a_region_are_errors(tmp_path: Path, shape: dict[str, Any], message: str) -> None:
    write_regions(tmp_path, shape)
    with pytest.raises(DataError, match=rf"export\.json, \[0\], {message}") as caught:
        read_dataset(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (7, r"\[1\]: expected a task"),
        ({"data": {"text": "dog"}, "annotations": [{"result": []}]}, r"\[1\]: has no image"),
        ({"data": {"image": "b.jpg"}, "annotations": [{"result": 7}]}, r"\[1\]: expected 'data', and a list"),
    ],
)
def test_faults_of_a_task_are_errors(tmp_path: Path, task: Any, message: str) -> None:
    write_images(tmp_path, IMAGES)
    write_json(tmp_path / "export.json", [label_studio_task(A, []), task])
    with pytest.raises(DataError, match=rf"export\.json, {message}"):
        read_dataset(tmp_path)
