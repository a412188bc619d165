from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_writers import Drawn, coco, write_images, write_json

from querybox.data import read_coco, read_dataset
from querybox.data.records import require_usable
from querybox.data.validate import with_dataset_findings
from querybox.errors import DataError

SAMPLE = Path(__file__).parent.parent / "data" / "coco_sample"
IMAGES = [
    Drawn(name="a.png", size=(40, 30), objects=[("cat", (1, 2, 11, 22)), ("dog", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40)),
]
NO_BOOL = "Input should be a number, not true or false"
Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    return coco(IMAGES, ["cat", "dog"])


def write(folder: Path, document: object) -> Path:
    write_images(folder / "images", IMAGES)
    return write_json(folder / "annotations" / "train.json", document)


def test_the_real_sample_reads_as_its_json_says() -> None:
    data = read_dataset(SAMPLE, "train")
    raw = json.loads((SAMPLE / "annotations" / "instances_train2017.json").read_text())
    assert [image.id for image in data.images] == [image["id"] for image in raw["images"]]
    assert [category.id for category in data.categories] == sorted(c["id"] for c in raw["categories"])
    assert sum(len(image.labels) for image in data.images) == len(raw["annotations"])
    assert sum(int(image.crowd.sum()) for image in data.images) == 1
    assert data.num_objects == len(raw["annotations"]) - 1
    for image in data.images:
        mine = [item for item in raw["annotations"] if item["image_id"] == image.id]
        sides = image.boxes_xyxy[:, 2:] - image.boxes_xyxy[:, :2]
        np.testing.assert_allclose(
            np.concatenate([image.boxes_xyxy[:, :2], sides], 1), [item["bbox"] for item in mine], atol=1e-9
        )
        assert [data.categories[label].id for label in image.labels] == [item["category_id"] for item in mine]
        np.testing.assert_array_equal(image.areas, [item["area"] for item in mine])
        assert image.path.is_file()


def test_images_without_objects_are_kept() -> None:
    assert [len(image.labels) for image in read_dataset(SAMPLE, "val").images] == [0, 5, 9]


def test_category_ids_with_gaps_and_zero_survive(tmp_path: Path, document: Document) -> None:
    document["categories"] = [{"id": 90, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 7, "name": "cow"}]
    document["annotations"][0]["category_id"] = 90
    document["annotations"][1]["category_id"] = 0
    data = read_dataset(write(tmp_path, document))
    assert [(category.id, category.name) for category in data.categories] == [
        (0, "dog"),
        (7, "cow"),
        (90, "cat"),
    ]
    assert data.images[0].labels.tolist() == [2, 0]


def test_missing_area_iscrowd_and_size_are_computed(tmp_path: Path, document: Document) -> None:
    for item in document["annotations"]:
        del item["area"], item["iscrowd"], item["id"]
    for image in document["images"]:
        del image["width"], image["height"]
    data = read_dataset(write(tmp_path, document))
    assert data.images[0].areas.tolist() == [200.0, 875.0]
    assert not data.images[0].crowd.any()
    assert [(image.height, image.width) for image in data.images] == [(30, 40), (40, 30)]


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": 0}, {"height": 0}, {"width": None}])
def test_a_size_of_0_is_that_of_the_image(tmp_path: Path, document: Document, size: Document) -> None:
    document["images"][1].update(size)
    data = read_dataset(write(tmp_path, document))
    assert [(image.height, image.width) for image in data.images] == [(30, 40), (40, 30)]
    assert [image.size_stated for image in data.images] == [True, False]
    assert data.unreadable == {}


def test_a_number_beyond_all_others_is_told_in_one_line(tmp_path: Path, document: Document) -> None:
    document["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10**400, 1, 1, 1]}]
    with pytest.raises(
        DataError,
        match=r"json: annotations\[0\].bbox\[0\]: Input should be a valid number; expected COCO JSON",
    ) as told:
        read_dataset(write(tmp_path, document))
    assert "\n" not in str(told.value)


def test_faulty_boxes_are_dropped_or_cut_and_counted(
    tmp_path: Path, document: Document, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [
        [float("nan"), 0, 5, 5],
        [0, 0, float("inf"), 5],
        [1e308, 0, 1e308, 5],  # whose right edge is infinite
        [3, 3, 0, 5],
        [0, 0, 0, 0],
        [9, 9, -4, 5],
        [50, 50, 5, 5],
        [-5, -5, 10, 10],
        [10, 10, 5, 5],
    ]
    document["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes)
    ] + [{"id": 99, "image_id": 12345, "category_id": 1, "bbox": [0, 0, 5, 5]}]
    with caplog.at_level(logging.WARNING, "querybox"):
        data = read_dataset(write(tmp_path, document))
    assert data.faulty_boxes == {
        "nan_box": 1, "infinite_box": 2, "zero_size_box": 2, "negative_size_box": 1, "outside_box": 1, "clipped_box": 1,
    }  # fmt: skip
    places = {found.kind: found.places[0] for found in data.findings}
    assert places["negative_size_box"].what == "annotations[5] (id 5), image 1: corners 9, 9, 5, 14 in 40x30"
    assert places["negative_size_box"].box_xyxy == (9.0, 9.0, 5.0, 14.0)
    assert places["clipped_box"].image_id == 1
    assert places["absent_image"].what == "annotations[9] (id 99) of image 12345"
    assert data.images[0].boxes_xyxy.tolist() == [[0, 0, 5, 5], [10, 10, 15, 15]]
    assert len(caplog.messages) == 1
    assert "boxes with a NaN (1: annotations[0] (id 0), image 1" in caplog.messages[0]


Change = Callable[[Document], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["images"].append(d["images"][0]), r"image ids that are not unique \(1: 1 occurs 2"),
        (
            lambda d: d["annotations"].append(d["annotations"][1]),
            r"annotation ids .*\(1: 2 occurs 2 times",
        ),
        (
            lambda d: d["categories"].append({"id": 1, "name": "x"}),
            r"category ids .*\(1: 1 occurs 2 times",
        ),
        (
            lambda d: d["categories"].append({"id": 5, "name": "cat"}),
            r"same name.*\(1: 'cat' with ids 1, 5\)",
        ),
        (
            lambda d: [item.update(category_id=77) for item in d["annotations"]],
            r"objects of a class .*\(2: annotations\[0\] \(id 1\) has category id 77; annotations\[1\]",
        ),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\].*bbox"),
        (
            lambda d: d["annotations"][1].update(bbox=None),
            r"annotations\[1\] \(id 2\): has neither a bbox nor polygons or a mask",
        ),
        (
            lambda d: d["annotations"][1].update(bbox=None, segmentation={"size": [3, 3], "counts": [9]}),
            r"annotations\[1\] \(id 2\): has neither a bbox nor polygons or a mask",
        ),
        (
            lambda d: d["annotations"][1].update(bbox=[], segmentation=[[]]),
            r"annotations\[1\] \(id 2\): has neither a bbox nor polygons or a mask",
        ),
        (
            lambda d: d["annotations"][1].update(category_id=None),
            r"json: annotations\[1\].category_id: Input should be a valid integer; expected COCO",
        ),
        (lambda d: d["images"][0].update(id=-1), r"images\[0\].id"),
        (lambda d: d["images"][0].update(width=-1), r"images\[0\].width"),
        (lambda d: d["images"][0].update(height=math.nan), r"images\[0\].height"),
        (lambda d: d["images"][0].update(width=True), rf"images\[0\].width: {NO_BOOL}"),
        (lambda d: d["images"][0].update(id=True), rf"images\[0\].id: {NO_BOOL}"),
        (lambda d: d["categories"][0].update(id=True), rf"categories\[0\].id: {NO_BOOL}"),
        (lambda d: d["annotations"][1].update(category_id=True), rf"annotations\[1\].category_id: {NO_BOOL}"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, True, 4]), rf"\[1\].bbox\[2\]: {NO_BOOL}"),
        (lambda d: d["annotations"][1].update(area=True), rf"annotations\[1\].area: {NO_BOOL}"),
        (lambda d: d.pop("categories"), r"categories: Field required; expected COCO JSON"),
        (
            lambda d: d["images"][0].update(file_name="../../secret.png"),
            r"file_name: '../../secret.png' is outside the dataset's folder, and no such image is in",
        ),
        (lambda d: d["images"][0].update(file_name="/etc/secret.png"), r"is outside the dataset"),
        (
            lambda d: [image.update(file_name=f"../{image['id']}") for image in d["images"]],
            r"none of its images can be read: missing .*\(2: .*'../1' is outside the dataset",
        ),
        (lambda d: d["images"][0].update(file_name="..\\..\\secret.png"), r"is outside the dataset"),
        (lambda d: d["images"][0].update(file_name="C:\\secret.png"), r"is outside the dataset"),
        (lambda d: d["images"][0].update(file_name="a\0.png"), r"is outside the dataset"),
        (
            lambda d: [image.update(file_name=f"gone{image['id']}.png") for image in d["images"]],
            r"none of its images can be read: the first is 'gone1.png'; searched",
        ),
        (
            lambda d: d["images"][0].update(file_name="gone.png"),
            r"1 of 2 images are missing or corrupt, .*gone.png",
        ),
        (lambda d: d.update(images=[], annotations=[]), r"lists no images"),
    ],
)
def test_faults_of_the_file_are_errors(
    tmp_path: Path, document: Document, change: Change, message: str
) -> None:
    change(document)
    write_images(tmp_path, [Drawn(name="secret.png", size=(40, 30))])
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(write(tmp_path / "data", document))
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"images": [1,]}', "[" * 100_000, '{"a": ' * 100_000, "\xff"]
)
def test_what_is_no_coco_json_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"train\.json: .*expected COCO JSON"):
        read_dataset(path)


def test_a_syntax_error_is_told_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"images": [],\n "annotations": oops}', encoding="utf-8")
    with pytest.raises(DataError, match="line 2 column 17"):
        read_dataset(path)


def test_mutated_files_raise_nothing_but_data_errors(tmp_path: Path, document: Document) -> None:
    good = write(tmp_path, document).read_bytes()
    random_ = random.Random(0)
    path = tmp_path / "annotations" / "train.json"
    failed = 0
    for _ in range(200):
        mutated = bytearray(good)
        for _ in range(random_.randint(1, 4)):
            start = random_.randrange(len(mutated))
            mutated[start : start + random_.randint(0, 3)] = random_.choice(
                [b"", b"\x00", b"-", b"9" * 400, b"NaN", b"}"]
            )
        path.write_bytes(mutated)
        try:
            read_dataset(path)
        except DataError:
            failed += 1
    assert failed > 100, failed


def test_the_images_of_another_machine_need_not_exist_for_read_coco(
    tmp_path: Path, document: Document
) -> None:
    path = write_json(tmp_path / "train.json", document)
    assert len(read_coco(path).images) == 2
    with pytest.raises(DataError, match="none of its images can be read"):
        read_dataset(path)


def test_nothing_to_learn_is_an_error(tmp_path: Path, document: Document) -> None:
    for item in document["annotations"]:
        item["iscrowd"] = 1
    data = read_dataset(write(tmp_path, document))
    assert data.num_objects == 0
    with pytest.raises(DataError, match="no objects to train on"):
        require_usable(with_dataset_findings(data, 0.0))


@pytest.mark.parametrize("folder", ["images/train", "images", "train", "."])
def test_images_are_found_where_people_put_them(tmp_path: Path, document: Document, folder: str) -> None:
    write_images(tmp_path / folder, IMAGES)
    data = read_dataset(write_json(tmp_path / "annotations" / "instances_train.json", document))
    assert [image.path for image in data.images] == [tmp_path / folder / image.name for image in IMAGES]


def test_images_of_lvis_have_the_name_in_their_url(tmp_path: Path, document: Document) -> None:
    for image in document["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image['file_name']}"
    document["images"][0]["coco_url"] += "?of=another"
    names = [image.pop("file_name") for image in document["images"]]
    assert [image.path.name for image in read_dataset(write(tmp_path, document)).images] == names
    del document["images"][0]["coco_url"]
    with pytest.raises(DataError, match=r"images\[0\]\.file_name: Field required"):
        read_dataset(write(tmp_path, document))


def test_an_image_of_unreadable_size_is_left_out(tmp_path: Path, document: Document) -> None:
    del document["images"][0]["width"]
    path = write(tmp_path, document)
    (tmp_path / "images" / "a.png").write_bytes(b"<html>")
    data = read_dataset(path, max_corrupt=0.5)
    assert [image.id for image in data.images] == [2]
    assert data.unreadable == {"broken_image": 1}
    assert list(data.excluded) == [1]
    assert "a.png: cannot be read as an image" in data.excluded[1]


def test_all_faults_are_listed_at_once(tmp_path: Path, document: Document) -> None:
    document["images"] += document["images"]
    document["annotations"] += document["annotations"]
    document["annotations"][0]["category_id"] = 8
    with pytest.raises(DataError) as caught:
        read_dataset(write(tmp_path, document))
    for part in (
        "image ids that are not unique (2: 1 occurs 2 times; 2 occurs",
        "annotation ids that are not unique (2",
        "has category id 8",
    ):
        assert part in str(caught.value)


def test_what_a_file_does_not_state_is_counted(tmp_path: Path, document: Document) -> None:
    del document["annotations"][0]["area"], document["annotations"][1]["iscrowd"]
    document["annotations"][1] |= {"area": 0, "segmentation": [[]]}
    counts = {found.kind: found.count for found in read_dataset(write(tmp_path, document)).findings}
    assert counts == {"no_area": 2, "no_iscrowd": 1}


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0]])
def test_without_a_box_that_of_the_polygons_is_used(
    tmp_path: Path, document: Document, bbox: list[float] | None
) -> None:
    polygons = [[], [3, 4, 20, 4, 20, 9], [0, 0, 40, 30]]
    document["annotations"][1] |= {"bbox": bbox, "segmentation": polygons}
    data = read_dataset(write(tmp_path, document))
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [3, 4, 20, 9]]
    assert data.images[0].masks is not None
    assert {found.kind for found in data.findings} == {"boxed_shape", "no_mask"}
