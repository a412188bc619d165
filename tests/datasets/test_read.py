from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dataset_writers import Drawn, coco, voc_xml, write_coco, write_images, write_json, write_voc, write_yolo
from hypothesis import given, settings
from hypothesis import strategies as st

from querybox.data import DataSettings, read_dataset, read_train_and_val
from querybox.data.splits import split_name
from querybox.errors import ConfigError, DataError
from querybox.masks import Rle

NAMES = ["ant", "bee", "cow"]
IMAGES = [Drawn(name="a.png", size=(40, 30), objects=[("ant", (1, 2, 11, 22))])]
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "blood_cells"


@st.composite
def drawn_images(draw: st.DrawFn) -> list[Drawn]:
    images = []
    for number in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        x, y = st.integers(0, width), st.integers(0, height)
        box = st.tuples(x, y, x, y).filter(lambda box: box[0] < box[2] and box[1] < box[3])
        objects = draw(st.lists(st.tuples(st.sampled_from(NAMES), box), max_size=4))
        images.append(Drawn(name=f"{number}.png", size=(width, height), objects=objects))
    # All names are used, because Pascal VOC knows no others.
    images.append(Drawn(name="z.png", size=(9, 9), objects=[(name, (0, 1, 5, 9)) for name in NAMES]))
    return images


@settings(max_examples=25, deadline=None)
@given(drawn_images())
def test_the_same_data_reads_the_same_in_three_formats(images: Sequence[Drawn]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("coco", "voc", "yolo"):
            (root / name).mkdir()
        write_coco(root / "coco", "train", images, NAMES)
        write_voc(root / "voc", "train", images)
        write_yolo(root / "yolo", "train", images, NAMES)
        read = [read_dataset(root / name, "train") for name in ("coco", "voc", "yolo")]
    for data in read:
        assert not data.faulty_boxes
        assert [category.name for category in data.categories] == NAMES
        assert [image.id for image in data.images] == list(range(1, len(images) + 1))
        for record, image in zip(data.images, images, strict=True):
            assert record.path.name == image.name
            assert (record.width, record.height) == image.size
            assert [NAMES[label] for label in record.labels] == [name for name, _ in image.objects]
            expected = np.array([box for _, box in image.objects], dtype=float).reshape(-1, 4)
            np.testing.assert_allclose(record.boxes_xyxy, expected, atol=1e-9)
            np.testing.assert_allclose(
                record.areas, (expected[:, 2] - expected[:, 0]) * (expected[:, 3] - expected[:, 1]), atol=1e-9
            )


def test_the_blood_cells_are_as_published() -> None:
    read = {split: read_dataset(EXAMPLE, split) for split in ("train", "val", "test")}
    assert {split: len(data.images) for split, data in read.items()} == {"train": 205, "val": 87, "test": 72}
    assert {split: data.faulty_boxes for split, data in read.items()} == {
        "train": {"zero_size_box": 1},
        "val": {"zero_size_box": 1},
        "test": {},
    }
    assert sum(data.num_objects for data in read.values()) == 4886
    assert [category.name for category in read["test"].categories] == ["RBC", "WBC", "Platelets"]


def test_the_nuclei_have_masks_in_their_boxes() -> None:
    read = {split: read_dataset(EXAMPLE / "nuclei", split) for split in ("train", "val", "test")}
    assert {split: len(data.images) for split, data in read.items()} == {"train": 183, "val": 75, "test": 63}
    assert {split: data.num_objects for split, data in read.items()} == {"train": 191, "val": 74, "test": 62}
    assert not any(data.findings for data in read.values())
    for image in (image for data in read.values() for image in data.images):
        masks = [mask for mask in image.masks or () if isinstance(mask, Rle)]
        assert len(masks) == len(image.labels)
        for mask, box, area in zip(masks, image.boxes_xyxy.tolist(), image.areas.tolist(), strict=True):
            assert mask.box_xyxy == tuple(box)
            assert mask.area == area > 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("instances_train2017", "train"),
        ("train", "train"),
        ("valid", "val"),
        ("VAL", "val"),
        ("my-validation", "val"),
        ("test-dev", "test"),
        ("trainval", "trainval"),
        ("latest", "latest"),
        ("annotations", "annotations"),
    ],
)
def test_split_names(text: str, name: str) -> None:
    assert split_name(text) == name


def test_a_split_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    write_coco(tmp_path, "train", IMAGES, NAMES)
    assert len(read_dataset(tmp_path).images) == 1
    write_coco(tmp_path, "instances_val2017", IMAGES, NAMES)
    (tmp_path / "annotations" / "train.json").rename(tmp_path / "annotations" / "instances_train2017.json")
    write_json(tmp_path / "annotations" / "captions_val2017.json", {})
    with pytest.raises(
        DataError, match=r"has several splits \(train, val\); specify which one to read: --split, or"
    ):
        read_dataset(tmp_path)
    with pytest.raises(
        DataError, match=r"has no split 'test'; it has train, val: name one of them \(--split, or"
    ):
        read_dataset(tmp_path, "test")
    settings = DataSettings(train=str(tmp_path), train_split="test")
    with pytest.raises(DataError, match=r"no split 'test'.*: name one of them \(data\.train_split\)"):
        read_train_and_val(settings)
    for split in ("val", "valid", "val2017", "instances_val2017"):
        assert read_dataset(tmp_path, split).source == tmp_path / "annotations" / "instances_val2017.json"


def test_two_files_of_one_split_are_told_apart_by_their_whole_names(tmp_path: Path) -> None:
    for name in ("instances_train2014", "instances_train2017"):
        write_coco(tmp_path, name, IMAGES, NAMES)
    with pytest.raises(DataError, match="it has instances_train2014, instances_train2017"):
        read_dataset(tmp_path, "train")
    assert read_dataset(tmp_path, "instances_train2014").source == (
        tmp_path / "annotations" / "instances_train2014.json"
    )


def test_the_layout_of_roboflow(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_images(tmp_path / split, IMAGES)
        write_json(tmp_path / split / "_annotations.coco.json", coco(IMAGES, NAMES))
    data = read_dataset(tmp_path, "val")
    assert data.images[0].path == tmp_path / "valid" / "a.png"
    assert len(read_dataset(tmp_path / "train").images) == 1


def test_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: no such file or folder; expected a dataset: check the path"):
        read_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match="contains no dataset; expected COCO JSON"):
        read_dataset(tmp_path)
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"a\.zip: contains archives"):
        read_dataset(tmp_path / "a.zip")
    write_voc(tmp_path, "train", IMAGES)
    write_yolo(tmp_path, "train", IMAGES, NAMES)
    with pytest.raises(DataError, match="could be Pascal VOC or YOLO; pass the path"):
        read_dataset(tmp_path)
    assert len(read_dataset(tmp_path / "data.yaml").images) == 1


def test_train_and_val_come_from_one_folder_or_two(tmp_path: Path) -> None:
    train_file = write_coco(tmp_path, "train", IMAGES, NAMES)
    train, val = read_train_and_val(DataSettings(train=str(tmp_path)))
    assert (train.source, val) == (train_file, None)
    val_file = write_coco(tmp_path, "val", IMAGES, NAMES)
    test_file = write_coco(tmp_path, "test", IMAGES, NAMES)

    def sources(**values: str) -> list[Path | str | None]:
        return [
            None if data is None else data.source for data in read_train_and_val(DataSettings.parse(values))
        ]

    assert sources(train=str(tmp_path)) == [train_file, val_file]
    assert sources(train=str(tmp_path), val_split="test") == [train_file, test_file]
    assert sources(train=str(tmp_path), train_split="test") == [test_file, val_file]
    assert sources(train=str(train_file)) == [train_file, None]
    assert sources(train=str(train_file), val=str(test_file)) == [train_file, test_file]
    assert sources(train=str(train_file), val=str(tmp_path)) == [train_file, val_file]
    with pytest.raises(ConfigError, match=r"data\.train"):
        read_train_and_val(DataSettings())


def test_a_csv_file_made_from_xml_files_is_not_read(tmp_path: Path) -> None:
    images = [Drawn(name="a.png", size=(64, 48), objects=[("cat", (8, 8, 24, 40))])]
    write_images(tmp_path / "train", images)
    (tmp_path / "train" / "a.xml").write_text(voc_xml(images[0]))
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    (tmp_path / "train_labels.csv").write_text(f"{header}\na.png,64,48,dog,1,1,9,9\n")
    data = read_dataset(tmp_path)
    assert [category.name for category in data.categories] == ["cat"]
    (note,) = (finding for finding in data.findings if finding.kind == "copied_annotations")
    assert note.places[0].what == "CSV beside Pascal VOC"
