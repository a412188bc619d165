from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import Drawn, write_images, write_yolo

from querybox.data import read_dataset
from querybox.errors import DataError

IMAGES = [
    Drawn(name="a.png", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="b.png", size=(30, 40)),
]
NAMES = ["dog", "cat"]


def test_the_yaml_file_and_its_folder_read_alike(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    for path in (file, tmp_path):
        data = read_dataset(path, "train")
        assert [(category.id, category.name) for category in data.categories] == [(0, "dog"), (1, "cat")]
        np.testing.assert_allclose(data.images[0].boxes_xyxy, [[1, 2, 11, 22], [5, 5, 40, 30]])
        assert data.images[0].labels.tolist() == [0, 1]


def test_class_numbers_with_gaps_and_names_that_yaml_would_turn(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text("train: images/train\nnames: {0: no, 5: 7, 1: on}\n")
    categories = read_dataset(file).categories
    assert [(category.id, category.name) for category in categories] == [(0, "no"), (1, "on"), (5, "7")]


def test_an_image_without_a_label_file_is_a_negative(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    (tmp_path / "labels" / "train" / "a.txt").unlink()
    assert [len(image.labels) for image in read_dataset(file).images] == [0, 0]


@pytest.mark.parametrize("layout", ["split inside", "split outside", "no split"])
def test_folders_without_a_yaml_file(tmp_path: Path, layout: str) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    if layout == "split outside":
        (tmp_path / "train").mkdir()
        for kind in ("images", "labels"):
            shutil.move(tmp_path / kind / "train", tmp_path / "train" / kind)
            (tmp_path / kind).rmdir()
    elif layout == "no split":
        for kind in ("images", "labels"):
            for file in (tmp_path / kind / "train").iterdir():
                shutil.move(file, tmp_path / kind / file.name)
            (tmp_path / kind / "train").rmdir()
    data = read_dataset(tmp_path)
    assert [image.labels.tolist() for image in data.images] == [[0, 1], []]
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"class names not found; add a classes\.txt"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("entry", "path"),
    [("../images/train", ""), ("images/train", "path: /elsewhere/on/another/machine\n"), ("train.txt", "")],
)
def test_the_entries_that_tools_write(tmp_path: Path, entry: str, path: str) -> None:
    root = tmp_path / "inner"
    root.mkdir()
    file = write_yolo(root, "train", IMAGES, NAMES)
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    file.write_text(f"{path}train: {entry}\nnames: [dog, cat]\n")
    assert [image.labels.tolist() for image in read_dataset(file).images] == [[0, 1], []]


@pytest.mark.parametrize(
    "content",
    [
        "path: ..\ntrain: other/images/train",
        "path: OUTSIDE\ntrain: images/train",
        "train: ../other/images/train",
        "train: OUTSIDE/images/train",
        "train: [images/train, images/../../other/images/train]",
    ],
)
def test_nothing_leads_out_of_the_folder(tmp_path: Path, content: str) -> None:
    outside = tmp_path / "other"
    for root in (tmp_path / "data", outside):
        root.mkdir()
        file = write_yolo(root, "train", IMAGES, NAMES)
    file = tmp_path / "data" / "data.yaml"
    file.write_text(f"{content}\nnames: [dog, cat]\n".replace("OUTSIDE", str(outside)))
    with pytest.raises(
        DataError,
        match=r"data\.yaml: .* is outside the dataset's folder, .* put data\.yaml into",
    ):
        read_dataset(file)


@pytest.mark.parametrize(
    "line", ["../other/secret.png", "OUTSIDE/secret.png", "images/../../other/secret.png"]
)
def test_lines_of_a_list_do_not_lead_out_of_the_folder(tmp_path: Path, line: str) -> None:
    write_images(tmp_path / "other", [Drawn(name="secret.png", size=(9, 9))])
    file = write_yolo(tmp_path / "data", "train", IMAGES, NAMES)
    file.write_text("train: train.txt\nnames: [dog, cat]\n")
    lines = ["images/train/a.png", line.replace("OUTSIDE", str(tmp_path / "other"))]
    file.with_name("train.txt").write_text("\n".join(lines))
    data = read_dataset(file, max_corrupt=0.5)
    assert [image.path.name for image in data.images] == ["a.png"]
    assert data.excluded.keys() == {2}
    assert "train.txt, line 2: " in data.excluded[2]
    assert "is outside the dataset's folder" in data.excluded[2]


def test_links_that_a_person_made_are_followed(tmp_path: Path) -> None:
    file = write_yolo(tmp_path / "data", "train", IMAGES, NAMES)
    (tmp_path / "data" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    assert len(read_dataset(file).images) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2", r"has 4 values; expected 5"),
        ("0 0.1 0.1 0.9 0.1 0.9", r"has 6 values; expected 5"),
        ("0 0.1 0.1 0.9 0.1 0.9 0.9 0.5", r"has 8 values; expected 5"),
        ("0.5 0.5 0.5 0.2 0.2", r"class 0\.5; expected a whole number"),
        ("nan 0.5 0.5 0.2 0.2", r"class nan; expected a whole number"),
        ("0 0.5 0.5 0.2 half", r"expected numbers"),
        ("x 0.5 0.5 0.2 0.2", r"expected numbers"),
        ("2 0.5 0.5 0.2 0.2", r"class 2; the dataset defines 0, 1"),
        ("-1 0.5 0.5 0.2 0.2", r"class -1; the dataset defines"),
        ("0 20 15 10 10", r"outside 0-1; divide pixels"),
        ("0 0.5 0.5 -0.2 0.2", r"outside 0-1"),
    ],
)
def test_faulty_lines_are_errors(tmp_path: Path, text: str, message: str) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2\n\n{text}\n")
    with pytest.raises(DataError, match=rf"a\.txt, line 3: .*{message}"):
        read_dataset(file)


def test_faulty_boxes_are_dropped_or_cut(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        "0 nan 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n1 0.95 0.5 0.2 0.2\n"
    )
    data = read_dataset(file)
    assert data.faulty_boxes == {"clipped_box": 1, "zero_size_box": 1, "nan_box": 1}
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[34, 12, 40, 18]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [", "expected YAML with 'names'"),
        ("train: x", "names: Field required"),
        ("- a", "expected YAML with 'names'"),
        ("names: [a]\nnames: [b]", "duplicate key"),
        ("names: [a]", "lists no images"),
        ("names: [a]\ntrain: nowhere", "'nowhere' does not exist"),
        ("names: " + "[" * 1000, "expected YAML"),
        ("names: !!python/object/apply:os.getcwd []", "expected YAML"),
    ],
)
def test_what_is_no_data_yaml_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{message}") as caught:
        read_dataset(file)
    assert "\n" not in str(caught.value)


def test_all_faulty_lines_are_listed(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    for name in ("a", "b"):
        (tmp_path / "labels" / "train" / f"{name}.txt").write_text("0 0.5\n9 0.5 0.5 0.2 0.2\n")
    with pytest.raises(
        DataError, match=r"annotations that .*\(2: .*a\.txt, line 1.*b\.txt, line 1"
    ) as caught:
        read_dataset(file)
    assert "objects of a class that the dataset does not define (2: " in str(caught.value)


def test_names_that_repeat_are_an_error(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(file.read_text().replace("- cat", "- dog"))
    with pytest.raises(DataError, match=r"same name.*'dog' is the name of 2 classes: 0, 1\)"):
        read_dataset(file)


def test_binary_labels_are_errors_and_missing_images_are_left_out(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/c.png\n")
    file.write_text("train: train.txt\nnames: [dog, cat]\n")
    with pytest.raises(DataError, match=r"1 of 2 images are missing or corrupt, more than .*c\.png"):
        read_dataset(file)
    data = read_dataset(file, max_corrupt=0.5)
    assert [image.path.name for image in data.images] == ["a.png"]
    assert data.unreadable == {"missing_image": 1}
    (tmp_path / "train.txt").write_text("images/train/d.png\nimages/train/e.png\n")
    with pytest.raises(DataError, match=r"none of its images can be read"):
        read_dataset(file)
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/c.png\n")
    write_images(tmp_path / "images" / "train", [Drawn(name="c.png", size=(9, 9))])
    (tmp_path / "labels" / "train" / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"c\.txt: cannot be read"):
        read_dataset(file)


def test_mutated_files_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    label = tmp_path / "labels" / "train" / "a.txt"
    random_ = random.Random(0)
    pieces = [b"", b"\x00", b"-", b"9" * 400, b"nan", b"[", b": ", b"*a", b"1e999", b"\xff"]
    for path in (label, file):
        good = path.read_bytes()
        for _ in range(60):
            mutated = bytearray(good)
            start = random_.randrange(len(mutated))
            mutated[start : start + random_.randint(0, 3)] = random_.choice(pieces)
            path.write_bytes(mutated)
            try:
                read_dataset(file)
            except DataError:
                continue
        path.write_bytes(good)
    assert len(read_dataset(file).images) == 2


def test_images_that_are_all_broken_are_an_error(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    for image in (tmp_path / "images" / "train").iterdir():
        image.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of its images can be read: files that are corrupt or not images \(2: "
    ):
        read_dataset(file)
