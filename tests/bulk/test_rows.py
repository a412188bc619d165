from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shards import jpeg, write_parquet, write_tar
from tiny_models import TINY

from querybox import Detector, Preprocessing, predict
from querybox.bulk.parts import Part, divide
from querybox.bulk.rows import count_written, predict_part
from querybox.bulk.worker import Worker
from querybox.data import tiling
from querybox.errors import ConfigError, DataError
from querybox.inference.detections import Detections
from querybox.inference.optimized_model import as_optimized
from querybox.inference.options import Options
from querybox.structures import Category, DetectorOutput, ImageBatch

CATEGORIES = [Category(id=3, name="cat"), Category(id=9, name="d\udcffg")]


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", categories=CATEGORIES, **TINY)
    detector.preprocessing = Preprocessing(short_side=32, long_side=64)
    return detector


def write_photos(folder: Path, count: int, seed: int = 0) -> list[Path]:
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (40, 60 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(count)]


def rows_of(content: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(content)).to_pylist()


def assert_row(row: dict[str, Any], found: Detections, name: str) -> None:
    assert row == {
        "name": name,
        "height": found.size[0],
        "width": found.size[1],
        "boxes_xyxy": found.boxes_xyxy.tolist(),
        "scores": found.scores.tolist(),
        "category_ids": [found.categories[label].id for label in found.labels.tolist()],
        "class_names": [name.replace("\udcff", "\\udcff") for name in found.names],
        "masks": None,
        "error": None,
    }


@pytest.mark.parametrize("options", [{}, {"tile": 32, "overlap": 0.3}, {"nms": 0.3, "top_k": 5}])
def test_rows_are_the_detections_of_predict(
    detector: Detector, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Those of files, of a tar and of a Parquet file of the same images, exactly."""
    photos = write_photos(tmp_path / "photos", 6)
    contents = [photo.read_bytes() for photo in photos]
    tar = write_tar(tmp_path / "a.tar", {photo.name: photo.read_bytes() for photo in photos})
    parquet = write_parquet(tmp_path / "a.parquet", contents)
    engine = as_optimized(detector)
    expected = list(predict(engine, photos, threshold=0.2, **options))
    assert all(map(len, expected))
    for places, names in (
        ([str(photo) for photo in photos], [str(photo) for photo in photos]),
        ([str(tar)], [f"{tar}#{photo.name}" for photo in photos]),
        ([str(parquet)], [f"{parquet}#{row}" for row in range(6)]),
    ):
        content, tally = predict_part(engine, Part(0, tuple(places)), Options(threshold=0.2, **options))
        for row, found, name in zip(rows_of(content), expected, names, strict=True):
            assert_row(row, found, name)
        assert tally == {"images": 6, "objects": sum(map(len, expected)), "errors": 0}


def test_broken_images_are_rows_in_their_place(detector: Detector, tmp_path: Path) -> None:
    photos = write_photos(tmp_path, 9)
    for broken in (0, 1, 4, 8):
        photos[broken].write_bytes(b"no image")
    photos[5].unlink()
    (tmp_path / "clip.mp4").write_bytes(b"")
    places = (*map(str, photos), str(tmp_path / "clip.mp4"))
    content, tally = predict_part(detector, Part(0, places), Options(threshold=0))
    rows = rows_of(content)
    assert [row["name"] for row in rows] == list(places)
    assert [row["error"] is None for row in rows] == [place not in (0, 1, 4, 5, 8, 9) for place in range(10)]
    assert "cannot be read as an image" in rows[0]["error"]
    assert "no such file" in rows[5]["error"]
    assert "is a video; predict it without --ray" in rows[9]["error"]
    assert {row["scores"] is None for row in rows if row["error"]} == {True}
    assert tally == {"images": 10, "objects": 40, "errors": 6}
    (tmp_path / "part.parquet").write_bytes(content)
    assert count_written(str(tmp_path / "part.parquet")) == tally


def test_the_file_states_the_classes(detector: Detector, tmp_path: Path) -> None:
    (photo,) = write_photos(tmp_path, 1)
    content, _ = predict_part(detector, Part(0, (str(photo),)), Options())
    metadata = pq.read_schema(io.BytesIO(content)).metadata
    classes = json.loads(metadata[b"querybox"])["categories"]
    assert [(each["id"], each["name"]) for each in classes] == [(3, "cat"), (9, "d\udcffg")]


class NanForNarrow:
    """A model that predicts NaN for images of one width."""

    def __init__(self, detector: Detector, width: int) -> None:
        self.detector, self.width = detector, width
        self.categories, self.preprocessing = detector.categories, detector.preprocessing
        self.device = torch.device("cpu")
        self.max_size: tuple[int, int] | None = None

    def __call__(self, batch: ImageBatch) -> DetectorOutput:
        output: DetectorOutput = self.detector(batch)
        if batch.images.shape[3] == self.width:
            output.layers[-1].boxes.fill_(float("nan"))
        return output


def test_an_image_whose_predictions_are_nan_is_an_error(detector: Detector, tmp_path: Path) -> None:
    """It would otherwise end every attempt to predict its part."""
    random = np.random.default_rng(0)
    for number, width in enumerate((32, 48, 32)):
        Image.fromarray(random.integers(0, 256, (32, width, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    places = tuple(str(tmp_path / f"{number}.png") for number in range(3))
    detector.eval()
    with torch.inference_mode():
        content, tally = predict_part(NanForNarrow(detector, 48), Part(0, places), Options(threshold=0))
    rows = rows_of(content)
    assert [row["name"] for row in rows] == list(places)
    assert [len(row["scores"] or ()) for row in rows] == [10, 0, 10]
    assert "1.png: the model predicts NaN or infinite values" in rows[1]["error"]
    assert tally == {"images": 3, "objects": 20, "errors": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "upright.png: an exported model of the fixed size 40x64 got images of 60x6 pixels"),
        ({"tile": 32, "overlap": 0}, "upright.png: tile=32 and overlap=0 divide an image of 400x40 pixels"),
    ],
)
def test_images_that_cannot_be_predicted_are_errors(
    detector: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    """They would otherwise end every attempt to predict their part."""
    monkeypatch.setattr(tiling, "MAX_TILES", 5)
    engine = NanForNarrow(detector.eval(), 0)
    engine.max_size = None if options else (40, 64)
    for name, size in {"a": (60, 40), "upright": (40, 400), "z": (60, 40)}.items():  # (width, height)
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    places = tuple(str(tmp_path / f"{name}.png") for name in ("a", "upright", "z"))
    with torch.inference_mode():
        content, tally = predict_part(engine, Part(0, places), Options(threshold=0, **options))
    rows = rows_of(content)
    assert [row["name"] for row in rows] == list(places)
    assert message in rows[1]["error"]
    assert tally["errors"] == 1


@pytest.mark.parametrize(
    "options", [{"threshold": 2}, {"top_k": 0}, {"batch_size": 0}, {"nms": -1}, {"threshold": float("nan")}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Options(**options)


def test_a_collection_is_divided_in_the_order_of_its_sources(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 250)
    shards = [write_tar(tmp_path / f"{number}.tar", {}) for number in range(2)]
    parts = divide([str(shards[0]), str(tmp_path / "photos"), str(shards[1])])
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [place for part in parts for place in part.places] == [
        str(shards[0]),
        *map(str, photos),
        str(shards[1]),
    ]
    assert Counter(len(part.places) for part in parts) == {1: 3, 3: 83}
    with pytest.raises(DataError, match="no such file or folder"):
        divide([str(tmp_path / "none")])


def test_a_file_in_several_sources_is_in_one_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    parts = divide([str(photos[1]), str(tmp_path / "photos"), f"{tmp_path}/photos/*"])
    assert [place for part in parts for place in part.places] == [str(photos[number]) for number in (1, 0, 2)]
    assert caplog.messages == [
        f"files that are named more than once are used once: {', '.join(map(str, (photos[1], photos[0], photos[2])))}"
    ]


def test_a_link_to_a_folder_does_not_double_its_files(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (tmp_path / "link").symlink_to("photos")
    parts = divide([str(tmp_path / "link"), str(tmp_path / "photos")])
    assert [place for part in parts for place in part.places] == [
        str(tmp_path / "link" / photo.name) for photo in photos
    ]


def test_a_part_that_ends_every_process_is_given_up(detector: Detector, tmp_path: Path) -> None:
    import pyarrow as pa

    (photo,) = write_photos(tmp_path, 1)
    begun: Counter[int] = Counter()

    def begin(number: int) -> int:
        begun[number] += 1
        return begun[number]

    worker = Worker(lambda: detector, Options(), str(tmp_path / "found"), begin)
    table = pa.Table.from_pylist([{"number": 7, "places": [str(photo)]}])
    results = [worker(table).to_pylist()[0]["failure"] for _ in range(4)]
    assert results[:3] == [""] * 3
    assert "0.png: the process that predicted this part, or its machine, ended 3 times" in results[3]


def test_a_part_whose_file_cannot_be_written_has_a_failure(detector: Detector, tmp_path: Path) -> None:
    import pyarrow as pa

    (photo,) = write_photos(tmp_path, 1)
    (tmp_path / "file").write_bytes(jpeg())
    worker = Worker(lambda: detector, Options(), str(tmp_path / "file"), lambda _: 1)
    (result,) = worker(pa.Table.from_pylist([{"number": 0, "places": [str(photo)]}])).to_pylist()
    assert "file" in result["failure"]
    assert result["images"] == 0
