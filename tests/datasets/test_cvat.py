from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from annotation_writers import TWO_IMAGES, assert_two_images, cvat, cvat_box, cvat_image, write_cvat
from dataset_writers import Drawn, write_images

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

LABELS = (
    "<task><labels><label><name>dog</name><type>any</type></label><label><name>ant</name></label>"
    "<label><name>night</name><type>tag</type></label></labels></task>"
)


def write_shapes(root: Path, *shapes: str) -> None:
    write_images(root / "images", TWO_IMAGES[:1])
    (root / "annotations.xml").write_text(cvat(cvat_image(TWO_IMAGES[0], shapes)), encoding="utf-8")


def test_images_of_a_task(tmp_path: Path) -> None:
    write_cvat(tmp_path, ".", TWO_IMAGES)
    assert_two_images(read_dataset(tmp_path))


def test_the_classes_are_those_that_the_file_defines(tmp_path: Path) -> None:
    write_images(tmp_path, TWO_IMAGES[:1])
    (tmp_path / "task.xml").write_text(
        cvat(cvat_image(TWO_IMAGES[0], [cvat_box("dog", (1, 2, 11, 22))]), LABELS)
    )
    data = read_dataset(tmp_path / "task.xml")
    assert [category.name for category in data.categories] == ["ant", "dog"]
    assert data.images[0].labels.tolist() == [1]


def test_subsets_of_a_project_are_splits(tmp_path: Path) -> None:
    names = ("Train", "Validation")
    for subset, image in zip(names, TWO_IMAGES, strict=True):
        write_images(tmp_path / "images" / subset, [image])
    texts = [
        cvat_image(image, [cvat_box(*item) for item in image.objects], more=f'subset="{subset}"')
        for image, subset in zip(TWO_IMAGES, names, strict=True)
    ]
    meta = "".join(f"<task><subset>{subset}</subset></task>" for subset in names)
    path = tmp_path / "annotations.xml"
    path.write_text(cvat("".join(texts), f"<project>{meta}</project>"))
    train, val = (read_dataset(tmp_path, split) for split in ("train", "val"))
    assert [image.path for image in train.images] == [tmp_path / "images" / "Train" / "a.jpg"]
    assert [image.path for image in val.images] == [tmp_path / "images" / "Validation" / "b.jpg"]
    assert [category.name for category in val.categories] == ["cat", "dog"]
    path.write_text(path.read_text().replace('subset="Train"', 'subset="Trian"'))
    with pytest.raises(
        DataError, match=r"image 'a\.jpg': is of subset 'Trian'; <meta> lists Train, Validation"
    ):
        read_dataset(tmp_path, "val")


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<polygon label="dog" points="10.5,20;30,5;25,40"/>', [10.5, 5, 30, 40]),
        ('<polyline label="dog" points="10,20;30,5"/>', [10, 5, 30, 20]),
        ('<box label="dog" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>', [25, 15, 35, 35]),
        ('<ellipse label="dog" cx="40" cy="30" rx="20" ry="10"/>', [20, 20, 60, 40]),
        ('<ellipse label="dog" cx="40" cy="30" rx="20" ry="10" rotation="90"/>', [30, 10, 50, 50]),
        ('<mask label="dog" rle="1, 199" left="3" top="4" width="10" height="20"/>', [3, 4, 13, 24]),
        (
            '<cuboid label="dog" xtl1="10" ytl1="11" xbl1="10" ybl1="30" xtr1="20" ytr1="11" xbr1="20" ybr1="30" '
            'xtl2="15" ytl2="5" xbl2="15" ybl2="25" xtr2="27" ytr2="5" xbr2="27" ybr2="25"/>',
            [10, 5, 27, 30],
        ),
    ],
)
def test_shapes_become_boxes(tmp_path: Path, shape: str, box: list[float]) -> None:
    write_shapes(tmp_path, shape)
    data = read_split(tmp_path, None)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [box], atol=1e-9)
    assert [(finding.kind, finding.count) for finding in data.findings] == [("boxed_shape", 1)]


def test_a_box_rotates_clockwise_about_its_center(tmp_path: Path) -> None:
    write_shapes(tmp_path, cvat_box("dog", (20, 20, 40, 30), 'rotation="30"'))
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    half = np.array([10 * cos + 5 * sin, 10 * sin + 5 * cos])
    expected = [[*(np.array([30, 25]) - half), *(np.array([30, 25]) + half)]]
    np.testing.assert_allclose(read_dataset(tmp_path).images[0].boxes_xyxy, expected)


def test_points_skeletons_and_tags_are_counted(tmp_path: Path) -> None:
    skeleton = '<skeleton label="dog"><points label="eye" points="4,5"/></skeleton>'
    write_shapes(
        tmp_path,
        '<points label="dog" points="1,2;3,4"/>',
        skeleton,
        '<tag label="night"/>',
        cvat_box("dog", (1, 2, 11, 22)),
    )
    data = read_split(tmp_path, None)
    assert [(finding.kind, finding.count) for finding in data.findings] == [("unsupported_shape", 3)]
    assert [place.what.rpartition(", ")[2] for place in data.findings[0].places] == [
        "points 1",
        "skeleton 2",
        "tag 3",
    ]
    assert [category.name for category in data.categories] == ["dog"]


def test_tracks_of_a_video(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [Drawn(name=f"frame_00000{n}.png", size=(80, 60)) for n in range(3)])
    tracks = (
        '<track id="0" label="dog"><box frame="1" xtl="1" ytl="2" xbr="11" ybr="22" outside="0" keyframe="1"/>'
        '<box frame="2" xtl="2" ytl="2" xbr="12" ybr="22" outside="1" keyframe="1"/></track>'
        '<track id="1" label="cat"><box frame="0" xtl="5" ytl="6" xbr="7" ybr="8" outside="0" keyframe="1"/>'
        '<box frame="1" xtl="6" ytl="6" xbr="8" ybr="8" outside="0" keyframe="0"/></track>'
    )
    size = "<original_size><width>80</width><height>60</height></original_size>"
    (tmp_path / "annotations.xml").write_text(cvat(tracks, f"<task>{size}</task>"))
    data = read_dataset(tmp_path)
    assert [image.path.name for image in data.images] == ["frame_000000.png", "frame_000001.png"]
    assert [image.boxes_xyxy.tolist() for image in data.images] == [
        [[5, 6, 7, 8]],
        [[1, 2, 11, 22], [6, 6, 8, 8]],
    ]
    assert [image.labels.tolist() for image in data.images] == [[0], [1, 0]]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            '<box label="dog" xtl="1" ytl="2" xbr="11"/>',
            r"image 'a\.jpg', box 1: expected numbers, got {'label': 'dog'",
        ),
        ('<box label="dog" xtl="1" ytl="2" xbr="11" ybr="x"/>', "box 1: expected numbers"),
        ('<polygon label="dog" points="1,2;3"/>', "polygon 1: expected numbers"),
        ('<box label="dog" xtl="1" ytl="2" xbr="11" ybr="9" rotation="inf"/>', "box 1: expected numbers"),
        (cvat_box(" ", (1, 2, 11, 22)), "box 1: has no label"),
        ("<box>", "not well-formed XML: mismatched tag"),
    ],
)
def test_faults_of_a_shape_are_errors(tmp_path: Path, shape: str, message: str) -> None:
    write_shapes(tmp_path, shape)
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "annotations.xml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entities_are_refused(tmp_path: Path) -> None:
    write_shapes(tmp_path, cvat_box("dog", (1, 2, 11, 22)))
    path = tmp_path / "annotations.xml"
    bomb = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'
    path.write_text(path.read_text().replace("<annotations>", f"{bomb}<annotations>", 1))
    with pytest.raises(DataError, match="not allowed"):
        read_dataset(tmp_path)


def test_faults_of_images_and_frames_are_errors(tmp_path: Path) -> None:
    write_images(tmp_path, TWO_IMAGES[:1])
    image = cvat_image(TWO_IMAGES[0], [cvat_box("dog", (1, 2, 11, 22))])
    track = '<track label="dog"><box frame="x" xtl="1" ytl="1" xbr="3" ybr="2"/></track>'
    for content, message in (
        (image.replace('name="a.jpg"', ""), "image '': has no name"),
        (image + track, "track 1, frame x, box: expected the number of a frame"),
    ):
        (tmp_path / "annotations.xml").write_text(cvat(content))
        with pytest.raises(DataError, match=message):
            read_dataset(tmp_path)
