from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from annotation_writers import (
    write_createml,
    write_csv,
    write_cvat,
    write_hugging_face,
    write_label_studio,
    write_labelme,
    write_open_images,
    write_tensorflow_csv,
)
from dataset_writers import Drawn, write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from querybox.data import read_dataset
from querybox.data.layout import locator_for, split_files
from querybox.data.read import read_split
from querybox.data.shapes import bounding_box, ellipse_box
from querybox.errors import DataError

NAMES = ["ant", "bee", "cow"]
WRITERS = (
    write_tensorflow_csv,
    write_labelme,
    write_cvat,
    write_label_studio,
    write_createml,
    write_open_images,
    write_hugging_face,
)


@st.composite
def sides(draw: st.DrawFn, length: int) -> tuple[int, int]:
    start = draw(st.integers(0, length - 1))
    return start, draw(st.integers(start + 1, length))


@st.composite
def drawn_images(draw: st.DrawFn) -> list[Drawn]:
    """Draw images with at least one object, because some formats list no others."""
    images = []
    for number in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        objects = []
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)):
            (x0, x1), (y0, y1) = draw(sides(width)), draw(sides(height))
            objects.append((name, (x0, y0, x1, y1)))
        images.append(Drawn(name=f"{number}.png", size=(width, height), objects=objects))
    return images


@pytest.mark.parametrize("write", WRITERS)
@settings(max_examples=10, deadline=None)
@given(images=drawn_images())
def test_what_is_written_is_read(
    write: Callable[[Path, str, Sequence[Drawn]], Path], images: Sequence[Drawn]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), "train", images)
        data = read_dataset(folder)
    assert {finding.kind for finding in data.findings} <= {"repeated_object"}
    names = sorted({name for image in images for name, _ in image.objects})
    assert [(category.id, category.name) for category in data.categories] == list(enumerate(names, start=1))
    assert [image.id for image in data.images] == list(range(1, len(images) + 1))
    for record, image in zip(data.images, images, strict=True):
        assert record.path.name == image.name
        assert (record.width, record.height) == image.size
        assert [names[label] for label in record.labels] == [name for name, _ in image.objects]
        expected = np.array([box for _, box in image.objects], dtype=float)
        np.testing.assert_allclose(record.boxes_xyxy, expected, atol=1e-9)


def test_invalid_boxes_are_findings_with_their_place(tmp_path: Path) -> None:
    write_images(tmp_path, [Drawn(name="a.png", size=(40, 30))])
    boxes = ["nan,0,9,9", "0,0,inf,9", "9,9,9,20", "20,5,10,9", "50,5,60,9", "30,5,60,9"]
    rows = [["a.png", 40, 30, "dog", *box.split(",")] for box in boxes]
    columns = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    write_csv(tmp_path / "boxes.csv", [columns, *rows])
    data = read_split(tmp_path, None)
    assert {finding.kind: finding.places[0].what.partition(", image")[0] for finding in data.findings} == {
        kind: f"{tmp_path / 'boxes.csv'}, line {line}"
        for line, kind in enumerate(
            ("nan_box", "infinite_box", "zero_size_box", "negative_size_box", "outside_box", "clipped_box"),
            start=2,
        )
    }
    assert data.images[0].boxes_xyxy.tolist() == [[30, 5, 40, 9]]


def test_an_image_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    write_images(tmp_path, [Drawn(name="secret.png", size=(40, 30))])
    write_images(tmp_path / "data", [Drawn(name="a.png", size=(40, 30))])
    columns = ["filename", "class", "xmin", "ymin", "xmax", "ymax"]
    rows = [[name, "dog", 1, 2, 3, 4] for name in ("a.png", "../secret.png", str(tmp_path / "secret.png"))]
    write_csv(tmp_path / "data" / "boxes.csv", [columns, *rows])
    data = read_split(tmp_path / "data", None)
    assert [image.path.name for image in data.images] == ["a.png"]
    assert [(finding.kind, finding.count) for finding in data.findings] == [("missing_image", 2)]


def test_missing_images_are_named(tmp_path: Path) -> None:
    path = write_tensorflow_csv(
        tmp_path, "train", [Drawn(name="a.png", size=(4, 3), objects=[("dog", (0, 0, 2, 2))])]
    )
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(
        DataError, match=r"none of its images can be read: the first is 'a\.png'; searched .*train"
    ):
        read_dataset(path)


def test_folders_with_a_file_for_each_image_are_given_up(tmp_path: Path) -> None:
    tried = []
    for number in range(250):
        (tmp_path / f"{number:03d}.json").write_text("{}")

    def recognises(file: Path) -> bool:
        tried.append(file)
        return False

    assert split_files(tmp_path, ".json", recognises) == {}
    assert len(tried) == 100


def test_files_of_one_split_keep_their_names(tmp_path: Path) -> None:
    for name in ("train/a.csv", "train/b.csv", "val/a.csv"):
        write_csv(tmp_path / name, [])
    files = split_files(tmp_path, ".csv", lambda _: True)
    assert {name: file.relative_to(tmp_path).as_posix() for name, file in files.items()} == {
        "train/a": "train/a.csv",
        "train/b": "train/b.csv",
        "val": "val/a.csv",
    }


def test_only_folders_of_the_dataset_are_searched(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "data" / "train" / "images").mkdir(parents=True)
    file = write_csv(tmp_path / "data" / "train.csv", [])
    folders = locator_for(file.parent, file).folders
    assert folders == [file.parent, file.parent / "train", file.parent / "train" / "images"]


def test_a_folder_of_images_beside_a_dataset_is_not_part_of_it(tmp_path: Path) -> None:
    image = Drawn(name="a.png", size=(8, 6), objects=[("dog", (1, 2, 5, 6))])
    write_tensorflow_csv(tmp_path / "data", "train", [image])
    write_images(tmp_path / "images", [image, Drawn(name="b.png", size=(8, 6))])
    data = read_split(tmp_path / "data", None)
    assert [record.path for record in data.images] == [tmp_path / "data" / "train" / "a.png"]
    assert not data.findings


def test_bounding_boxes_propagate_nan() -> None:
    assert np.isnan(bounding_box([(1, 2), (float("nan"), 4), (3, 1)])[0])
    assert bounding_box([(1, 2), (3, float("inf"))]) == (1, 2, 3, float("inf"))


def test_the_box_of_a_rotated_ellipse() -> None:
    angle = np.linspace(0, 2 * np.pi, 100_001)
    x, y = 20 * np.cos(angle), 5 * np.sin(angle)
    cos, sin = np.cos(np.radians(35)), np.sin(np.radians(35))
    outline = np.stack([3 + x * cos - y * sin, 4 + x * sin + y * cos])
    expected = [*outline.min(axis=1), *outline.max(axis=1)]
    np.testing.assert_allclose(ellipse_box((3, 4), (20, 5), 35), expected, atol=1e-6)


def test_images_that_no_split_lists_are_counted(tmp_path: Path) -> None:
    images = [Drawn(name=f"{n}.png", size=(8, 6), objects=[("dog", (1, 2, 5, 6))]) for n in range(6)]
    write_tensorflow_csv(tmp_path, "train", images[:2])
    write_tensorflow_csv(tmp_path, "valid", images[2:4])
    write_images(tmp_path / "train", images[4:5])
    write_images(tmp_path / "others", images[5:])
    for split, names in (("train", ["others/5.png", "train/4.png"]), ("val", ["others/5.png"])):
        (finding,) = read_split(tmp_path, split).findings
        assert finding.kind == "unlabeled_image"
        assert [place.what for place in finding.places] == [str(tmp_path / name) for name in names]
    assert not read_split(tmp_path / "train" / "_annotations.csv", None).findings


def test_images_of_splits_in_one_folder(tmp_path: Path) -> None:
    images = [Drawn(name=f"{n}.png", size=(8, 6)) for n in range(3)]
    write_label_studio(tmp_path, "train", images[:1])
    write_label_studio(tmp_path, "val", images[1:2])
    write_images(tmp_path / "images", images)
    (finding,) = read_split(tmp_path, "val").findings
    assert (finding.kind, [place.what for place in finding.places]) == (
        "unlabeled_image",
        [str(tmp_path / "images" / "2.png")],
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
@pytest.mark.parametrize("write", [write_labelme, write_label_studio, write_createml, write_hugging_face])
def test_encodings_of_json(tmp_path: Path, write: Callable[..., Path], encoding: str) -> None:
    image = Drawn(name="\u732b.png", size=(8, 6), objects=[("\u732b\u54aa", (1, 2, 5, 6))])
    write(tmp_path, "train", [image])
    for file in tmp_path.rglob("*.json*"):
        text = file.read_text(encoding="utf-8").encode().decode("unicode_escape")
        file.write_bytes(text.encode(encoding))
    data = read_split(tmp_path, None)
    assert [category.name for category in data.categories] == ["\u732b\u54aa"]
    assert [image.path.name for image in data.images] == ["\u732b.png"]
    assert [finding.kind for finding in data.findings] == (["other_encoding"] if encoding == "gbk" else [])
