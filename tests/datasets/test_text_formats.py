"""KITTI, VisDrone and WIDER FACE."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_writers import Drawn, write_images

from querybox.data import read_dataset
from querybox.data.read import find_splits, read_split

SIZE = (100, 80)
CAR = "Car 0.00 0 -1.57 10.5 20.0 50.0 60.0 1.5 1.6 3.9 1.0 1.5 8.0 -1.5"
REGION = "DontCare -1 -1 -10 60.0 20.0 80.0 40.0 -1 -1 -1 -1000 -1000 -1000 -10"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(("images", "labels"), [("image_2", "label_2"), ("images", "labels")])
def test_kitti(tmp_path: Path, images: str, labels: str) -> None:
    for folder in (images, "image_3"):  # of the right camera
        write_images(
            tmp_path / "training" / folder,
            [Drawn(name="000000.png", size=SIZE), Drawn(name="000001.png", size=SIZE)],
        )
    write(tmp_path / "training" / labels / "000000.txt", CAR, REGION, CAR.replace("Car", "Van") + " 0.9")
    write(tmp_path / "training" / labels / "000001.txt")
    assert find_splits(tmp_path).keys() == {"train"}
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == ["Car", "Van"]
    assert [image.path for image in data.images] == [
        tmp_path / "training" / images / f"00000{number}.png" for number in (0, 1)
    ]
    assert data.images[0].boxes_xyxy.tolist() == [[10.5, 20, 50, 60]] * 2
    assert data.images[0].labels.tolist() == [0, 1]
    assert len(data.images[1].labels) == 0
    assert {finding.kind: finding.count for finding in data.findings} == {
        "ignored_region": 1,
        "unlabeled_image": 2,
    }


def test_visdrone(tmp_path: Path) -> None:
    for split, name in (("VisDrone2019-DET-train", "a"), ("VisDrone2019-DET-val", "b")):
        write_images(tmp_path / split / "images", [Drawn(name=f"{name}.jpg", size=SIZE)])
        lines = ["10,20,40,30,1,4,0,0", "5,6,7,8,1,10,0,1,", "60,20,20,20,0,0,0,0", "1,1,5,5,0,11,0,0"]
        write(tmp_path / split / "annotations" / f"{name}.txt", *lines)
    data = read_dataset(tmp_path, "val")
    assert [(category.id, category.name) for category in data.categories][::3] == [
        (1, "pedestrian"),
        (4, "car"),
        (7, "tricycle"),
        (10, "motor"),
    ]
    assert data.images[0].path == tmp_path / "VisDrone2019-DET-val" / "images" / "b.jpg"
    assert data.images[0].boxes_xyxy.tolist() == [[10, 20, 50, 50], [5, 6, 12, 14]]
    assert data.images[0].labels.tolist() == [3, 9]
    assert {finding.kind: finding.count for finding in data.findings} == {"ignored_region": 2}


def test_wider_face(tmp_path: Path) -> None:
    names = [f"0--Parade/0_Parade_{number}.jpg" for number in (1, 2)]
    write_images(
        tmp_path / "WIDER_train" / "images" / "0--Parade",
        [Drawn(name=Path(name).name, size=SIZE) for name in names],
    )
    faces = ["10 20 40 30 0 0 0 0 0 0 ", "1 2 3 4 2 0 0 1 2 0 "]
    lines = [names[0], "2", *faces, names[1], "0", "0 0 0 0 0 0 0 0 0 0 "]
    write(tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt", *lines)
    data = read_dataset(tmp_path, "train")
    assert [category.name for category in data.categories] == ["face"]
    assert [image.path for image in data.images] == [
        tmp_path / "WIDER_train" / "images" / name for name in names
    ]
    assert data.images[0].boxes_xyxy.tolist() == [[10, 20, 50, 50]]
    assert len(data.images[1].labels) == 0
    assert {finding.kind: finding.count for finding in data.findings} == {"ignored_region": 1}


@pytest.mark.parametrize(
    ("file", "first", "line", "message"),
    [
        ("label_2/a.txt", CAR, "Car 1 2 3", "expected a class and 14 numbers"),
        ("label_2/a.txt", CAR, CAR.replace("60.0", "x"), "expected a class and 14 numbers"),
        (
            "annotations/a.txt",
            "10,20,40,30,1,4,0,0",
            "10,20,40,30,1,12,0,0",
            "expected 8 whole numbers of VisDrone",
        ),
        (
            "annotations/a.txt",
            "10,20,40,30,1,4,0,0",
            f"{'9' * 5000},20,40,30,1,4,0,0",
            "expected 8 whole numbers of VisDrone",
        ),
        *(
            (
                "faces.txt",
                "a.jpg\n1\n10 20 40 30 0 0 0 0 0 0",
                f"{'9' * digits} 20 40 30 0 0 0 0 0 0",
                "expected an image, a number of faces, or",
            )
            for digits in (400, 5000)
        ),
        (
            "faces.txt",
            "a.jpg\n1\n10 20 40 30 0 0 0 0 0 0",
            "10 20 40",
            "expected an image, a number of faces, or",
        ),
    ],
)
def test_faults_are_findings_with_their_line(
    tmp_path: Path, file: str, first: str, line: str, message: str
) -> None:
    images = {"label_2": "image_2", "annotations": "images"}.get(Path(file).parent.name, ".")
    write_images(tmp_path / images, [Drawn(name="a.jpg", size=SIZE)])
    path = write(tmp_path / file, first, "", line)
    (finding,) = [each for each in read_split(tmp_path, None).findings if each.kind == "malformed"]
    number = 3 + first.count("\n")
    assert finding.places[0].what.startswith(f"{path}, line {number}: got {line[:80]!r}; {message}")


def test_text_that_cannot_be_read(tmp_path: Path) -> None:
    for name, line in (("label_2", CAR), ("annotations", "10,20,40,30,1,4,0,0")):
        write(tmp_path / name / name / "a.txt", line)
        (tmp_path / name / name / "b.txt").write_bytes(b"\xff\xff\xff")
        found = {
            finding.kind: finding.places[0].what for finding in read_split(tmp_path / name, None).findings
        }
        assert found["malformed"].startswith(f"{tmp_path / name / name / 'b.txt'}: ")
