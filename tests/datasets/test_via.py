from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from annotation_writers import write_csv
from dataset_writers import Drawn, write_images, write_json

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

IMAGES = [Drawn(name="a.jpg", size=(100, 80)), Drawn(name="b.jpg", size=(30, 40))]
RECT = {"name": "rect", "x": 10, "y": 20, "width": 40, "height": 30}
POLYGON = {"name": "polygon", "all_points_x": [5, 25, 15], "all_points_y": [6, 8, 30]}


def region(shape: dict[str, Any], **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def entries(*regions: dict[str, Any], mapping: bool = False) -> dict[str, Any]:
    """Return the entries of both images; the second has no region."""
    first: Any = {str(number): item for number, item in enumerate(regions)} if mapping else list(regions)
    return {
        "a.jpg123": {"filename": "a.jpg", "size": 123, "regions": first, "file_attributes": {}},
        "b.jpg45": {"filename": "b.jpg", "size": 45, "regions": {} if mapping else [], "file_attributes": {}},
    }


@pytest.mark.parametrize("kind", ["project", "version 1", "version 2"])
def test_json(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "train", IMAGES)
    content = entries(
        region(RECT, **{"class": "dog"}), region(POLYGON, **{"class": "cat"}), mapping=kind == "version 1"
    )
    if kind == "project":
        content = {"_via_settings": {"ui": {}}, "_via_img_metadata": content, "_via_attributes": {}}
    write_json(tmp_path / "train" / "via_region_data.json", content)
    data = read_dataset(tmp_path, "train")
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert [image.path.name for image in data.images] == ["a.jpg", "b.jpg"]
    assert data.images[0].boxes_xyxy.tolist() == [[10, 20, 50, 50], [5, 6, 25, 30]]
    assert data.images[0].labels.tolist() == [1, 0]
    assert len(data.images[1].labels) == 0
    assert {finding.kind: finding.count for finding in data.findings} == {"boxed_shape": 1, "no_mask": 1}


@pytest.mark.parametrize("name", ["filename", "#filename"])
def test_csv(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, IMAGES)
    columns = [name, "file_size", "file_attributes", "region_count", "region_id"]
    rows: list[list[object]] = [
        [*columns, "region_shape_attributes", "region_attributes"],
        ["a.jpg", 1, "{}", 2, 0, json.dumps(RECT), '{"label": "dog"}'],
        ["a.jpg", 1, "{}", 2, 1, json.dumps(POLYGON), '{"label": "cat"}'],
        ["b.jpg", 1, "{}", 0, 0, "{}", "{}"],
    ]
    write_csv(tmp_path / "via_export_csv.csv", rows)
    data = read_dataset(tmp_path)
    assert data.images[0].boxes_xyxy.tolist() == [[10, 20, 50, 50], [5, 6, 25, 30]]
    assert [data.categories[label].name for label in data.images[0].labels] == ["dog", "cat"]
    assert len(data.images[1].labels) == 0


def test_boxes_of_shapes(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    shapes: list[dict[str, Any]] = [
        {"name": "circle", "cx": 30, "cy": 40, "r": 10},
        {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10},
        {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10, "theta": math.pi / 2},
        {"name": "polyline", "all_points_x": [1, 9], "all_points_y": [2, 5]},
        {"name": "point", "cx": 4, "cy": 5},
    ]
    write_json(tmp_path / "balloons.json", entries(*map(region, shapes)))
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == ["object"]
    expected = [[20, 30, 40, 50], [30, 30, 70, 50], [40, 20, 60, 60], [1, 2, 9, 5]]
    for box, sides in zip(data.images[0].boxes_xyxy.tolist(), expected, strict=True):
        assert box == pytest.approx(sides)
    assert {finding.kind: finding.count for finding in data.findings} == {
        "unsupported_shape": 1,
        "boxed_shape": 4,
        "no_mask": 1,
    }


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({"Class": "dog", "colour": "red"}, "dog"),
        ({"animal": "dog"}, "dog"),
        ({"type": {"dog": True, "cat": False}}, "dog"),
        ({"label": 7}, "7"),
    ],
)
def test_the_attribute_with_the_class(tmp_path: Path, attributes: dict[str, Any], name: str) -> None:
    write_images(tmp_path, IMAGES)
    write_json(tmp_path / "via.json", entries(region(RECT, **attributes)))
    assert [category.name for category in read_dataset(tmp_path).categories] == [name]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            region(RECT, colour="red", size="big"),
            r"has no class in its attributes \(colour, size\); expected it in 'class'",
        ),
        (region(RECT, **{"class": ""}), r"has no class in its attributes \(class\)"),
        (region(RECT, truncated=True), r"has no class in its attributes \(truncated\)"),
        (region(RECT, type={"dog": True, "cat": True}), r"has no class in its attributes \(type\)"),
        (region(RECT | {"x": "left"}), r"shape_attributes\.x: Input should be a valid number"),
        (region(RECT | {"x": True}), r"shape_attributes\.x: Input should be a number, not true or false"),
        (region(POLYGON | {"all_points_x": [True, 2, 3]}), r"\.all_points_x: .*, not true or false"),
        (region(POLYGON | {"all_points_x": [1]}), r"shape_attributes: all_points_x and all_points_y differ"),
        ({}, r"shape_attributes: Field required; expected 'shape_attributes'"),
    ],
)
def test_faults_are_findings_with_their_place(tmp_path: Path, item: dict[str, Any], message: str) -> None:
    write_images(tmp_path, IMAGES)
    file = write_json(tmp_path / "via.json", entries(item))
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    assert re.search(message, finding.places[0].what)
    assert finding.places[0].what.startswith(f"{file}, 'a.jpg123', region 0: ")


def test_a_region_without_a_class_among_others_is_malformed(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    file = write_json(tmp_path / "via.json", entries(region(RECT, animal="dog"), region(RECT)))
    data = read_split(tmp_path, None)
    assert [category.name for category in data.categories] == ["dog"]
    assert [place.what for each in data.findings if each.kind == "malformed" for place in each.places] == [
        f"{file}, 'a.jpg123', region 1: has no attributes, but other regions have their class there; expected a class"
    ]


@pytest.mark.parametrize(("entries_", "kind"), [([1], "an object of type list"), (None, "None")])
def test_a_project_without_entries_is_refused(tmp_path: Path, entries_: object, kind: str) -> None:
    write_images(tmp_path, IMAGES)
    file = write_json(tmp_path / "via.json", {"_via_settings": {}, "_via_img_metadata": entries_})
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value) == (
        f"{file}: _via_img_metadata is {kind}; expected an object with an entry for each image"
    )


@pytest.mark.parametrize("theta", [math.pi / 2, 5 * math.pi / 2, 1e308])
def test_angles_of_any_size(tmp_path: Path, theta: float) -> None:
    write_images(tmp_path, IMAGES)
    ellipse = {"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 20, "theta": theta}
    write_json(tmp_path / "via.json", entries(region(ellipse)))
    assert read_dataset(tmp_path).images[0].boxes_xyxy[0].tolist() == pytest.approx([30, 20, 70, 60])


def test_other_faults_are_findings(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    write_json(tmp_path / "via.json", entries() | {"c": {"regions": []}})
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    assert ", 'c': filename: Field required; expected 'filename' and 'regions'" in finding.places[0].what
    (tmp_path / "via.json").unlink()
    columns = ["filename", "region_shape_attributes", "region_attributes"]
    write_csv(tmp_path / "via.csv", [columns, ["a.jpg", "{", "{}"], ["", "{}", "{}"]])
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    assert [place.what.partition(": ")[2][:16] for place in finding.places] == [
        "EOF while parsin",
        "has no filename;",
    ]
