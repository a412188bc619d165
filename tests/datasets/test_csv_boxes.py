from __future__ import annotations

from pathlib import Path

import pytest
from annotation_writers import write_csv, write_tensorflow_csv
from dataset_writers import Drawn, write_images

from querybox.data import read_dataset
from querybox.data.read import read_split
from querybox.errors import DataError

IMAGES = [
    Drawn(name="b.jpg", size=(40, 30), objects=[("dog", (1, 2, 11, 22)), ("cat", (5, 5, 40, 30))]),
    Drawn(name="a.jpg", size=(30, 40), objects=[("dog", (0.5, 1, 20, 39))]),
]
COLUMNS = "filename,width,height,class,xmin,ymin,xmax,ymax"


def test_rows_of_one_image_become_its_boxes(tmp_path: Path) -> None:
    write_tensorflow_csv(tmp_path, "train", IMAGES)
    data = read_dataset(tmp_path)
    assert [(category.id, category.name) for category in data.categories] == [(1, "cat"), (2, "dog")]
    assert [image.path.name for image in data.images] == ["b.jpg", "a.jpg"]
    assert [(image.id, image.width, image.height) for image in data.images] == [(1, 40, 30), (2, 30, 40)]
    assert data.images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]
    assert data.images[0].labels.tolist() == [1, 0]
    assert data.images[1].boxes_xyxy.tolist() == [[0.5, 1, 20, 39]]
    assert not data.findings


def test_every_split_has_the_classes_of_all(tmp_path: Path) -> None:
    write_tensorflow_csv(tmp_path, "train", IMAGES[:1])
    write_tensorflow_csv(tmp_path, "valid", IMAGES[1:])
    for split, names in (("train", ["b.jpg"]), ("val", ["a.jpg"])):
        data = read_dataset(tmp_path, split)
        assert [category.name for category in data.categories] == ["cat", "dog"]
        assert [image.path.name for image in data.images] == names
    assert read_dataset(tmp_path, "val").images[0].labels.tolist() == [1]


def test_the_layout_of_the_tutorial(tmp_path: Path) -> None:
    write_images(tmp_path / "images", IMAGES)
    for split, image in zip(("train", "test"), IMAGES, strict=True):
        rows = [[image.name, *image.size, name, *box] for name, box in image.objects]
        write_csv(tmp_path / "data" / f"{split}_labels.csv", [COLUMNS.split(","), *rows])
    for path in (tmp_path, tmp_path / "data"):
        assert read_dataset(path, "test").images[0].path == tmp_path / "images" / "a.jpg"
    assert read_dataset(tmp_path, "train").images[0].boxes_xyxy.tolist() == [[1, 2, 11, 22], [5, 5, 40, 30]]


def test_columns_may_have_another_order_and_sizes_may_be_missing(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    text = "\ufeffxmin, xmax ,ymin,ymax,class,filename,extra\r\n1,11,2,22,dog,b.jpg,7\r\n\r\n"
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8")
    (image,) = read_dataset(tmp_path / "boxes.csv").images
    assert (image.width, image.height, image.size_stated) == (40, 30, False)
    assert image.boxes_xyxy.tolist() == [[1, 2, 11, 22]]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("image_path,label,x_min,y_min,x_max,y_max\nsub/b.jpg,dog,1,2,11,22\na.jpg,,,,,\n", ["dog"]),
        ("image,xmin,ymin,xmax,ymax\nb.jpg,1,2,11,22\na.jpg,,,,\n", ["object"]),
        ("filename,label,x,y,width,height\nb.jpg,dog,1,2,10,20\na.jpg,,,,,\n", ["dog"]),
        ("path,name,x,y,w,h\nb.jpg,dog,1,2,10,20\na.jpg,,,,,\n", ["dog"]),
        ('image_id,width,height,bbox,source\nb,40,30,"[1.0, 2.0, 10.0, 20.0]",x\na,30,40,,x\n', ["object"]),
        ("Image Name, Class Name, X Min, Y Min, X Max, Y Max\nb.jpg,dog,1,2,11,22\na.jpg,,,,,\n", ["dog"]),
        (
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\n"
            "dog,1,2,10,20,b.jpg,40,30\n,,,,,a.jpg,30,40\n",
            ["dog"],
        ),
        ("filename,x_center,y_center,width,height,class\nb.jpg,6,12,10,20,dog\na.jpg,,,,,\n", ["dog"]),
        ("filename;class;xmin;ymin;xmax;ymax\nb.jpg;dog, big;1,0;2;11,00;22\na.jpg;;;;;\n", ["dog, big"]),
        (
            "Filename\tClass\tXMin\tYMin\tXMax\tYMax\r\nb.jpg\tdog\t1\t2\t11\t22\r\na.jpg\t\t\t\t\t\r\n",
            ["dog"],
        ),
        ("b.jpg,1,2,11,22,dog\na.jpg,,,,,\n", ["dog"]),
        ("a.jpg,,,,,\nb.jpg,1,2,11,22,dog\n", ["dog"]),
        ("filename,class,xmin,ymin,xmax,ymax\nb.jpg,dog,1,2,11,22\na.jpg,NaN,nan,nan,nan,nan\n", ["dog"]),
        ("filename,class,xmin,ymin,xmax,ymax\nb.jpg,none,1,2,11,22\na.jpg,,NULL,NULL,NULL,NULL\n", ["none"]),
        ('image_id,bbox\nb,"[1.0, 2.0, 10.0, 20.0]"\na,[]\n', ["object"]),
    ],
)
def test_columns_of_other_data(tmp_path: Path, text: str, names: list[str]) -> None:
    write_images(tmp_path / "images", IMAGES)
    (tmp_path / "boxes.csv").write_text(text)
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == names
    found = {image.path.name: image.boxes_xyxy.tolist() for image in data.images}
    assert found == {"b.jpg": [[1, 2, 11, 22]], "a.jpg": []}
    assert not data.findings


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n", "filename,class\nb.jpg,dog\n", "b.jpg,1,2,11,22\n", "b.jpg,1,2,x,22,dog\n", "cat,0\n", ""],
)
def test_other_tables_are_not_read(tmp_path: Path, text: str) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match="contains images, but no recognised annotations"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.jpg,40,30,dog,1,2,x,4", r"line 3: got the box \['1', '2', 'x', '4'\]; expected numbers in xmin"),
        ("b.jpg,40,30,dog,1,2,3", "line 3: got the box .* expected numbers"),
        ("b.jpg,40,30,,1,2,3,4", "line 3: has no class"),
        (",40,30,dog,1,2,3,4", "line 3: has no filename"),
        ('b.jpg,40,30,dog,"1,5",2,3,4', r"line 3: got the box \['1,5', '2', '3', '4'\]; expected numbers"),
        (
            "b.jpg,40,30,dog,None,None,None,None",
            r"line 3: got the box \['None', 'None', .*; expected numbers",
        ),
        ("b.jpg,40,30,,1,2,3,nan", "line 3: has no class"),
        ("b.jpg,40,30,dog,,,,", r"line 3: got the box \['', '', '', ''\]; expected numbers"),
        ("b.jpg,41,30,dog,1,2,3,4", "line 3: the size of 'b.jpg' differs from that in .*line 2"),
        (
            'b.jpg,40,30,"' + "d" * 200_000 + '",1,2,3,4',
            "cannot be read as CSV: field larger than field limit",
        ),
    ],
)
def test_faults_of_a_row_are_errors(tmp_path: Path, row: str, message: str) -> None:
    write_images(tmp_path, IMAGES)
    (tmp_path / "boxes.csv").write_text(f"{COLUMNS}\nb.jpg,40,30,dog,1,2,3,4\n{row}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_dataset(tmp_path)
    assert "boxes.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write_images(tmp_path, [Drawn(name="\u72d7.jpg", size=(40, 30))])
    text = f"{COLUMNS}\n\u72d7.jpg,40,30,\u72d7,1,2,3,4\n"
    (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
    data = read_split(tmp_path, None)
    assert [category.name for category in data.categories] == ["\u72d7"]
    assert [image.path.name for image in data.images] == ["\u72d7.jpg"]
    noted = [finding.kind for finding in data.findings]
    assert noted == (["other_encoding"] if encoding == "gbk" else [])


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, IMAGES)
    rows = "b.jpg,40,30,dog,1,2,3,4\n" * 4000
    (tmp_path / "boxes.csv").write_bytes(f"{COLUMNS}\n{rows}".encode() + b"\xff\xff\xff")
    with pytest.raises(DataError, match=r"boxes\.csv: cannot be read as CSV: .*; expected UTF-8"):
        read_dataset(tmp_path)
