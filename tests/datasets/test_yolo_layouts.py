"""Layouts of YOLO folders as annotation tools write them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import Drawn, write_images, write_yolo
from layouts import IMAGES, NAMES, kinds, require_both, splits

from querybox.data import read_dataset
from querybox.data.read import find_splits
from querybox.errors import DataError


def test_labels_of_ultralytics_with_keypoints(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(file.read_text() + "\nkpt_shape: [2, 3]\nnc: 3\nroboflow: {project: x}\n")
    label = tmp_path / "labels" / "train" / "b.txt"
    label.write_text(label.read_text().strip() + " 0.5 0.5 2 0.6 0.6 2\n")
    require_both(read_dataset(file), {"keypoints": 1, "ignored_key": 1, "num_classes_mismatch": 1})


@pytest.mark.parametrize(
    "text", ["train: /content/my/images/train", "valid: C:\\data\\images\\train", "test: other/images/train"]
)
def test_entries_of_another_machine(tmp_path: Path, text: str) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    renamed = file.rename(tmp_path / "coco8.yaml")
    renamed.write_text(f"{text}\nnames: {NAMES}\n")
    read = splits(tmp_path)
    assert read.keys() == {{"train": "train", "valid": "val", "test": "test"}[text.partition(":")[0]]}
    (data,) = read.values()
    require_both(data, {"moved_path": 1})


def test_val_and_valid(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(f"train: images/train\nval: images/train\nvalid: images/gone\nnames: {NAMES}\n")
    read = find_splits(file)
    assert read.keys() == {"train", "val"}
    for _ in range(2):  # reading again finds the same
        require_both(read["val"](), {"ignored_key": 1})


def test_a_test_split_that_does_not_exist(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_text(f"train: images/train\ntest: ../test/images\nnames: {NAMES}\n")
    read = find_splits(file)
    assert read.keys() == {"train"}
    require_both(read["train"](), {"ignored_key": 1})
    file.write_text(f"test: ../test/images\nnames: {NAMES}\n")
    with pytest.raises(DataError, match=r"'\.\./test/images' does not exist"):
        read_dataset(file)


def test_labels_with_a_suffix_in_capitals(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    for label in (tmp_path / "labels" / "train").iterdir():
        label.rename(label.with_suffix(".TXT"))
    require_both(read_dataset(file), {})


def test_the_layout_of_darknet(tmp_path: Path) -> None:
    """Entries and images are named relative to the folder above `data`."""
    write_images(tmp_path / "data" / "obj", [IMAGES[0]])
    texts = {
        "obj.data": "classes = 3\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
        "obj.names": "\n".join(NAMES),
        "train.txt": f"data/obj/{IMAGES[0].name}\n",
        f"obj/{Path(IMAGES[0].name).stem}.txt": "1 0.5 0.5 0.2 0.4\n",
    }
    for name, text in texts.items():
        (tmp_path / "data" / name).write_text(text)
    (image,) = read_dataset(tmp_path).images
    width, height = IMAGES[0].size
    assert image.path == tmp_path / "data" / "obj" / IMAGES[0].name
    np.testing.assert_allclose(image.boxes_xyxy, [[0.4 * width, 0.3 * height, 0.6 * width, 0.7 * height]])
    assert image.labels.tolist() == [1]


@pytest.mark.parametrize("where", ["beside", "beside in splits", "beside in images", "names among labels"])
def test_layouts_of_yolo(tmp_path: Path, where: str) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    names = tmp_path / "classes.txt"
    if where == "names among labels":
        names = labels / "classes.txt"
    elif where == "beside in images":
        for file in labels.iterdir():
            file.rename(images / file.name)
        (labels / "keep.txt").touch()
    else:
        target = tmp_path / "train" if where == "beside in splits" else tmp_path
        target.mkdir(exist_ok=True)
        for file in (*images.iterdir(), *labels.iterdir()):
            file.rename(target / file.name)
        shutil.rmtree(tmp_path / "images")
        shutil.rmtree(tmp_path / "labels")
    names.write_text("cat\ndog\n")
    read = splits(tmp_path)
    assert read.keys() == {"all" if where == "beside" else "train"}
    (data,) = read.values()
    require_both(data, {"unmatched_label": 1} if where == "beside in images" else {})
    if where == "beside":
        require_both(read_dataset(names))


@pytest.mark.parametrize("capital", [False, True])
def test_folders_named_in_the_singular(tmp_path: Path, capital: bool) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    for name in ("images", "labels"):
        (tmp_path / name).rename(tmp_path / (name[:-1].title() if capital else name[:-1]))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    require_both(read_dataset(tmp_path, "train"))


@pytest.mark.parametrize("layout", ["Images and Labels", "splits"])
def test_folders_with_a_capital_letter(tmp_path: Path, layout: str) -> None:
    """As they are named on systems that do not tell capital letters from small ones."""
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    if layout == "splits":
        (tmp_path / "Train").mkdir()
        for kind in ("images", "labels"):
            (tmp_path / kind / "train").rename(tmp_path / "Train" / kind.title())
            (tmp_path / kind).rmdir()
    else:
        for kind in ("images", "labels"):
            (tmp_path / kind).rename(tmp_path / kind.title())
    (tmp_path / "Classes.txt").write_text("\n".join(NAMES))
    require_both(read_dataset(tmp_path), {})
    if layout != "splits":
        require_both(read_dataset(tmp_path / "Classes.txt"), {})


@pytest.mark.parametrize("name", ["labels.txt", "names.txt", "_darknet.labels", "obj.names"])
def test_files_of_class_names(tmp_path: Path, name: str) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    (tmp_path / name).write_text("cat\ndog\n")
    (data,) = splits(tmp_path).values()
    require_both(data)


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\n\ndog\nbird\n", ["cat", "", "dog", "bird"]),
        ("cat\n \t\ndog\nbird", ["cat", "", "dog", "bird"]),
        ("\ncat\r\ndog\r\n", ["", "cat", "dog"]),
        ("cat\nbig\u2028dog\nold\x85owl\nbird\n", ["cat", "big\u2028dog", "old\x85owl", "bird"]),
        ("cat\rdog\rbird\r", ["cat", "dog", "bird"]),
        ("cat\ndog\nbird\n\n \n\n", ["cat", "dog", "bird"]),
    ],
)
def test_the_number_of_a_class_is_that_of_its_line(
    tmp_path: Path, name: str, text: str, names: list[str]
) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    labels = tmp_path / "labels" / "train"
    (labels / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.2 0.2\n")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    (data,) = splits(tmp_path).values()
    assert [(category.id, category.name) for category in data.categories] == list(enumerate(names))
    assert data.images[0].labels.tolist() == [0, 2]
    assert kinds(data).get("unnamed_category", 0) == names.count("")


def test_several_classes_without_a_name_are_an_error(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\nbird\n")
    with pytest.raises(DataError, match=r"cannot be distinguished \(1: classes 1, 3 have no name\)"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 0.5 0.5 0.2 0.2 0.87",
            "has 6 values; expected 5: class cx cy width height, without a confidence",
        ),
        ("2 0.5 0.5 0.2 0.2", "class 2; the dataset defines 0, 1, the first of which is 0"),
        ("7 0.5 0.5 0.2 0.2", "class 7; the dataset defines 0, 1[):;]"),
    ],
)
def test_mistakes_in_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t"])
@pytest.mark.parametrize("named", [False, True])
def test_lines_as_people_write_them(tmp_path: Path, separator: str, named: bool) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES)
    for file in (tmp_path / "labels" / "train").iterdir():
        rows = [line.split() for line in file.read_text().splitlines()]
        rows = [[NAMES[int(number)] if named else number, *box] for number, *box in rows]
        file.write_text("".join(separator.join(row) + "\n" for row in rows))
    require_both(read_dataset(tmp_path))
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    require_both(read_dataset(tmp_path))  # recognised by the lines
    file.write_text("owl 0.5 0.5 0.2 0.2\n")
    with pytest.raises(
        DataError, match=r"got 'owl 0.5 0.5 0.2 0.2'; expected numbers: class cx cy width height"
    ):
        read_dataset(tmp_path)


def test_an_archive_that_was_unpacked_to_a_folder_in_a_folder(tmp_path: Path) -> None:
    inner = tmp_path / "photos" / "photos-1"
    for split in ("train", "val"):
        write_yolo(inner, split, IMAGES, NAMES)
    (inner / "data.yaml").unlink()
    (inner / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "photos" / "README.md").touch()
    (tmp_path / "__MACOSX").mkdir()
    read = splits(tmp_path)
    assert read.keys() == {"train", "val"}
    require_both(read["val"])
    (tmp_path / "notes").mkdir()  # now the folder has two: what is in one is no longer all
    assert read_dataset(tmp_path / "photos", "train").images


def test_labels_beside_images_without_class_names_need_them(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"class names not found; add a classes\.txt"):
        read_dataset(tmp_path)


def test_texts_beside_images_that_are_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "a.txt").write_text("A photo of a dog.\n")
    with pytest.raises(DataError, match="contains images, but no recognised annotations"):
        read_dataset(tmp_path)


def test_what_yolo_does_not_use_is_counted(tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", IMAGES, NAMES).unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    write_images(tmp_path / "images", [Drawn(name="stray.png", size=(9, 9))])
    write_images(tmp_path / "images" / "train", [Drawn(name="c.png", size=(9, 9))])
    (tmp_path / "labels" / "train" / "z.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = read_dataset(tmp_path)
    assert kinds(data) == {"unlabeled_negative": 1, "unmatched_label": 1, "unread_file": 1}
    assert [len(image.labels) for image in data.images] == [2, 1, 0]
    places = {finding.kind: finding.places[0].what for finding in data.findings}
    assert places["unread_file"].endswith("stray.png")
    assert places["unmatched_label"].endswith("z.txt")
    assert places["unlabeled_negative"].endswith("c.png")


def test_values_just_outside_are_clipped(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES[:1], NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.98 1.02 0.2 0.2\n1.0 0.5 0.5 1.05 0.4\n")
    data = read_dataset(file)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[35.2, 27.6, 40.0, 30.0], [0.0, 9.0, 40.0, 21.0]])
    assert data.images[0].labels.tolist() == [0, 1]
    assert kinds(data) == {"clipped_box": 2}


def test_corners_of_rotated_boxes(tmp_path: Path) -> None:
    file = write_yolo(tmp_path, "train", IMAGES[:1], NAMES)
    (tmp_path / "labels" / "train" / "a.txt").write_text(
        "0 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5\n0 0 0 nan 1 0.5 0.5\n"
    )
    data = read_dataset(file)
    np.testing.assert_allclose(data.images[0].boxes_xyxy, [[4, 3, 36, 27]])
    assert kinds(data) == {"boxed_shape": 2, "nan_box": 1}


def test_darknet_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.names").write_text("secret\n")
    root = tmp_path / "data"
    write_images(root, IMAGES)
    (root / "train.txt").write_text("a.png\n")
    (root / "obj.data").write_text("train = train.txt\nnames = ../secret.names\n")
    with pytest.raises(DataError, match=r"secret\.names' is outside the dataset's folder"):
        read_dataset(root)
    (root / "obj.data").write_text("train = train.txt\n")
    with pytest.raises(DataError, match="class names not found; expected 'names = '"):
        read_dataset(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gbk"])
def test_encodings_of_yolo(tmp_path: Path, encoding: str) -> None:
    file = write_yolo(tmp_path, "train", IMAGES, NAMES)
    file.write_bytes("train: images/train\nnames: [猫, 狗]\n".encode(encoding))
    data = read_dataset(file)
    assert [category.name for category in data.categories] == ["猫", "狗"]
    assert kinds(data) == ({"other_encoding": 1} if encoding == "gbk" else {})


def test_labels_whose_names_are_composed_otherwise(tmp_path: Path) -> None:
    """As where one of two folders was packed by macOS."""
    names = {"e\u0301": "\u00e9", "\u00fc": "u\u0308"}
    drawn = [Drawn(name=f"{name}.png", size=(40, 30), objects=[("cat", (1, 2, 11, 22))]) for name in names]
    write_yolo(tmp_path, "train", drawn, NAMES)
    for name, other in names.items():
        (tmp_path / "labels" / "train" / f"{name}.txt").rename(tmp_path / "labels" / "train" / f"{other}.txt")
    data = read_dataset(tmp_path, "train")
    assert [len(image.labels) for image in data.images] == [1, 1]
    assert not {"unmatched_label", "unlabeled_negative"} & kinds(data).keys()
