from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_writers import changed
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from querybox.data.records import DetectionData, ImageRecord
from querybox.errors import ConfigError, DataError
from querybox.evaluation import evaluate as MODULE
from querybox.evaluation.evaluate import coco_metrics, evaluate
from querybox.evaluation.result import METRICS, Evaluation
from querybox.inference.detections import Detections
from querybox.inference.options import Options
from querybox.inference.sources import Frame
from querybox.report import write_report
from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing

FIXTURES = Path(__file__).parents[1] / "data" / "coco_evaluator"
CATEGORIES = (Category(id=7, name="cat"), Category(id=0, name="dog"), Category(id=3, name="cow"))


def data_of(truth: dict[str, Any]) -> DetectionData:
    """Read the content of a COCO file, without its images."""
    categories = tuple(Category(id=one["id"], name=one["name"]) for one in truth["categories"])
    labels = {category.id: label for label, category in enumerate(categories)}
    images = []
    for image in truth["images"]:
        objects = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        boxes = np.array([one["bbox"] for one in objects], dtype=np.float64).reshape(-1, 4)
        images.append(
            ImageRecord(
                id=image["id"],
                path=Path(f"{image['id']}.jpg"),
                width=image["width"],
                height=image["height"],
                boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
                labels=np.array([labels[one["category_id"]] for one in objects], dtype=np.int64),
                crowd=np.array([one["iscrowd"] for one in objects], dtype=bool),
                areas=np.array([one["area"] for one in objects], dtype=np.float64),
            )
        )
    return DetectionData(source=Path("truth.json"), categories=categories, images=tuple(images))


def detections_of(results: list[dict[str, Any]], data: DetectionData) -> dict[int, Detections]:
    """Group a COCO result list by image, best first."""
    labels = {category.id: label for label, category in enumerate(data.categories)}
    sizes = {image.id: (image.height, image.width) for image in data.images}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: -result["score"]):
        by_image.setdefault(result["image_id"], []).append(result)
    found = {}
    for image_id, best_first in by_image.items():
        boxes = torch.tensor([one["bbox"] for one in best_first], dtype=torch.float64)
        found[image_id] = Detections(
            boxes_xyxy=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            scores=torch.tensor([one["score"] for one in best_first], dtype=torch.float64),
            labels=torch.tensor([labels[one["category_id"]] for one in best_first]),
            categories=data.categories,
            size=sizes[image_id],
        )
    return found


def by_pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[list[float], NDArray[np.float64]]:
    """Return the 12 numbers, and precision by IoU, recall and category in the order of their ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO()
        ours.dataset = truth
        ours.createIndex()
        theirs = ours.loadRes(json.loads(json.dumps(results)))
        evaluator = COCOeval(ours, theirs, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    stats = [math.nan if value == -1 else value for value in evaluator.stats.tolist()]
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # all areas, 100 detections
    return stats, np.where(precision == -1, np.nan, precision)


def assert_same_metrics(evaluation: Evaluation, expected: tuple[list[float], NDArray[np.float64]]) -> None:
    stats, precision = expected
    ours = np.array([evaluation.metrics[name] for name in METRICS])
    np.testing.assert_allclose(ours, stats, rtol=0, atol=1e-9)
    by_id = np.argsort([one.category.id for one in evaluation.categories])
    np.testing.assert_allclose(evaluation.precision[:, :, by_id], precision, rtol=0, atol=1e-9)
    per_class = np.array([one.AP for one in evaluation.categories])[by_id]
    np.testing.assert_allclose(per_class, precision.mean((0, 1)), rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def coco_evaluation() -> Evaluation:
    data = data_of(json.loads((FIXTURES / "annotations.json").read_text()))
    return coco_metrics(data, detections_of(json.loads((FIXTURES / "results.json").read_text()), data))


def test_reproduces_the_published_numbers(coco_evaluation: Evaluation) -> None:
    metrics = coco_evaluation.metrics
    assert tuple(metrics) == METRICS
    assert metrics["AP"] == pytest.approx(0.5045806987249628, abs=1e-9)
    published = {"AP50": 0.697, "AP75": 0.573, "APs": 0.586, "APm": 0.519, "APl": 0.501}
    published |= {"AR1": 0.387, "AR10": 0.594, "AR100": 0.595}
    assert {name: round(metrics[name], 3) for name in published} == published


def test_counts_and_classes(coco_evaluation: Evaluation) -> None:
    assert (coco_evaluation.images, coco_evaluation.objects, coco_evaluation.crowds) == (100, 830, 9)
    assert repr(coco_evaluation) == "Evaluation(100 images, 830 objects: AP 0.505, AP50 0.697)"
    per_class = [one.AP for one in coco_evaluation.categories]
    assert np.nanmean(per_class) == pytest.approx(coco_evaluation.metrics["AP"], abs=1e-12)
    assert [math.isnan(one.AP) for one in coco_evaluation.categories] == [
        one.objects == 0 for one in coco_evaluation.categories
    ]


# Boxes of a coarse grid make equal scores, equal overlaps and overlaps of exactly 0.5 common; quarters of a pixel are
# exact in float32 and float64 alike.
corners = st.tuples(
    *[st.integers(0, 60).map(lambda n: n * 2.25)] * 2, *[st.integers(1, 60).map(lambda n: n * 2.25)] * 2
)
objects = st.tuples(
    corners,
    st.sampled_from(CATEGORIES),
    st.booleans() | st.just(False),
    st.sampled_from([500.0, 1024.0, 9216.0, 2e4]),
)
found_objects = st.tuples(corners, st.sampled_from(CATEGORIES), st.integers(0, 8).map(lambda n: n / 8))


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw the truth and the detections of a few images, some of them empty."""
    image_ids = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in image_ids:
        truths = draw(st.lists(objects, max_size=6))
        for box, category, crowd, area in truths:
            annotation = {"image_id": image_id, "category_id": category.id, "bbox": list(box), "area": area}
            annotations.append({"id": len(annotations) + 1, "iscrowd": int(crowd), **annotation})
        near = [st.just(truth[0]) for truth in truths]
        candidates = st.tuples(
            st.one_of(corners, *near), st.sampled_from(CATEGORIES), st.integers(0, 8).map(lambda n: n / 8)
        )
        # The same detections again and again pass the limit of 100 an image and class.
        for box, category, score in draw(st.lists(candidates, max_size=12)) * draw(
            st.sampled_from([1, 1, 1, 40])
        ):
            results.append(
                {"image_id": image_id, "category_id": category.id, "bbox": list(box), "score": score}
            )
    truth = {
        "images": [{"id": image_id, "width": 640, "height": 480} for image_id in image_ids],
        "categories": [{"id": category.id, "name": category.name} for category in CATEGORIES],
        "annotations": annotations,
    }
    return truth, sorted(results, key=lambda result: -result["score"])


@given(problems())
@settings(max_examples=150, deadline=None)
def test_agrees_with_pycocotools(problem: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    truth, results = problem
    expected = by_pycocotools(truth, results) if results else None
    data = data_of(truth)
    evaluation = coco_metrics(data, detections_of(results, data))
    if expected is not None:  # pycocotools cannot read an empty result list
        assert_same_metrics(evaluation, expected)
    reported = {name: value for name, value in evaluation.metrics.items() if not math.isnan(value)}
    assert all(0 <= value <= 1 for value in reported.values())


def crowded(rng: np.random.Generator, num_classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make the truth and the detections of images with many objects of each class, in two sizes of classes."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    image_ids = rng.permutation(1000)[:40].tolist()
    for image_id in image_ids:
        count = int(rng.choice([0, 3, 25]))
        boxes = np.concatenate([rng.uniform(0, 300, (count, 2)), np.exp(rng.uniform(1, 6, (count, 2)))], 1)
        for box in boxes.round(2).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(num_classes)),
                    "bbox": box,
                    "area": box[2] * box[3] * rng.uniform(0.3, 1),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
        guesses = np.repeat(boxes, 8, axis=0) if count else rng.uniform(1, 200, (5, 4))
        shifts = rng.normal(0, 0.1, guesses.shape)
        guesses += shifts * np.tile(guesses[:, 2:], 2)
        for box, shift in zip(guesses.astype(np.float32).tolist(), np.abs(shifts).mean(1), strict=True):
            category = int(rng.integers(num_classes))
            score = float(max(1, round(16 * (1 - shift)))) / 16  # many are equal
            results.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
    truth = {
        "images": [{"id": image_id, "width": 800, "height": 800} for image_id in image_ids],
        "categories": [{"id": number, "name": str(number)} for number in range(num_classes)][::-1],
        "annotations": annotations,
    }
    return truth, results


@pytest.mark.parametrize("num_classes", [1, 2, 30])
def test_agrees_with_pycocotools_on_crowded_images(monkeypatch: pytest.MonkeyPatch, num_classes: int) -> None:
    """One class: 200 detections in an image; thirty: most have no object there."""
    truth, results = crowded(np.random.default_rng(num_classes), num_classes)
    expected = by_pycocotools(truth, results)
    data = data_of(truth)
    found = detections_of(results, data)
    for chunk in (10_000, 7):
        monkeypatch.setattr("querybox.evaluation.average_precision.CHUNK", chunk)
        evaluation = coco_metrics(data, found)
        assert_same_metrics(evaluation, expected)
        assert evaluation.metrics["AR100"] > 0.05  # there is something to agree on


def record(
    image_id: int = 1, boxes: list[list[float]] | None = None, labels: list[int] | None = None
) -> ImageRecord:
    boxes_xyxy = np.array(boxes or [], dtype=np.float64).reshape(-1, 4)
    return ImageRecord(
        id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=100,
        height=100,
        boxes_xyxy=boxes_xyxy,
        labels=np.array(labels or [], dtype=np.int64),
        crowd=np.zeros(len(boxes_xyxy), dtype=bool),
        areas=(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1),
    )


def dataset(*images: ImageRecord) -> DetectionData:
    return DetectionData(source=Path("data"), categories=CATEGORIES, images=images)


def found(categories: tuple[Category, ...] = CATEGORIES, label: int = 0) -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[10.0, 10.0, 50.0, 50.0]]),
        scores=torch.tensor([0.75]),
        labels=torch.tensor([label]),
        categories=categories,
        size=(100, 100),
    )


def test_no_objects_is_not_a_zero(tmp_path: Path) -> None:
    evaluation = coco_metrics(dataset(record()), {})
    assert all(math.isnan(value) for value in evaluation.metrics.values())
    evaluation.to_json(tmp_path / "metrics.json")
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["metrics"] == dict.fromkeys(METRICS)
    assert report["agreement"]["f1"] is None


def test_nothing_found_is_a_zero() -> None:
    evaluation = coco_metrics(dataset(record(boxes=[[10, 10, 50, 50]], labels=[1])), {})
    assert evaluation.metrics["AP"] == 0
    assert math.isnan(evaluation.metrics["APl"])
    assert [one.AP for one in evaluation.categories] == pytest.approx([math.nan, 0, math.nan], nan_ok=True)


def test_json_and_results_use_the_ids_of_the_data(tmp_path: Path) -> None:
    evaluation = coco_metrics(dataset(record(5, [[10, 10, 50, 50]], [1])), {5: found(label=1)})
    assert evaluation.to_coco() == [
        {"image_id": 5, "category_id": 0, "bbox": [10.0, 10.0, 40.0, 40.0], "score": 0.75}
    ]
    evaluation.to_json(tmp_path / "metrics.json")
    report = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert report["metrics"]["AP"] == pytest.approx(1)
    assert report["categories"][1] == {"id": 0, "name": "dog", "objects": 1, "AP": 1.0, "AP50": 1.0}
    assert report["detections"] == report["objects"] == report["images"] == 1


def test_precision_follows_the_order_of_labels_not_of_ids() -> None:
    data = dataset(record(1, [[10, 10, 50, 50], [60, 60, 90, 90]], [0, 2]))
    evaluation = coco_metrics(data, {1: found(label=0)})
    assert [one.AP for one in evaluation.categories] == pytest.approx([1, math.nan, 0], nan_ok=True)


def test_classes_are_matched_by_name() -> None:
    data = dataset(record(1, [[10, 10, 50, 50]], [2]))
    reordered = (Category(id=1, name="cow"), Category(id=2, name="cat"), Category(id=3, name="dog"))
    evaluation = coco_metrics(data, {1: found(reordered, label=0)})
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.detections[1].names == ["cow"]
    assert evaluation.to_coco()[0]["category_id"] == 3


def test_other_classes_are_refused() -> None:
    others = (*CATEGORIES[:2], Category(id=9, name="horse"))
    with pytest.raises(
        ConfigError, match="the detector lacks 'cow', the data lack 'horse'; use the same class names"
    ):
        coco_metrics(dataset(record()), {1: found(others)})
    with pytest.raises(ConfigError, match="the detector lacks 'cow', the data lack none"):
        coco_metrics(dataset(record()), {1: found(CATEGORIES[:2])})


def test_detections_of_other_images_are_refused() -> None:
    with pytest.raises(
        DataError, match="detections for 2 images that are not in the data, the first with id 8"
    ):
        coco_metrics(dataset(record(1)), {9: found(), 8: found()})
    upright = changed(record(1), height=200)
    with pytest.raises(DataError, match=r"1\.jpg: got detections .* of 100x100 .*; expected 200x100 "):
        coco_metrics(dataset(upright), {1: found()})


class Named:
    """An engine of which only the classes are asked for."""

    categories = CATEGORIES
    preprocessing = Preprocessing()
    device = torch.device("cpu")

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        raise NotImplementedError


def test_evaluate_detects_in_every_image_as_it_was_annotated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def detect_frames(detector: object, frames: Iterable[Frame], options: Options) -> list[Detections]:
        asked.update(options=options, shapes=[tuple(frame.pixels.shape) for frame in frames])
        return [replace(found(label=0), size=(height, width)) for _, height, width in asked["shapes"]]

    monkeypatch.setattr(MODULE, "detect_frames", detect_frames)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter; the boxes of the first image are those of the stored pixels
    for name in ("3.jpg", "1.jpg"):
        Image.new("RGB", (100, 60)).save(tmp_path / name, exif=exif)
    stored = changed(record(3, [[10, 10, 50, 50]], [0]), path=tmp_path / "3.jpg", height=60)
    turned = changed(record(1), path=tmp_path / "1.jpg", width=60)
    evaluation = evaluate(Named(), dataset(stored, turned), batch_size=2)
    assert asked["shapes"] == [(3, 60, 100), (3, 100, 60)]
    assert asked["options"] == Options(threshold=0.0, top_k=100, batch_size=2)
    assert list(evaluation.detections) == [3, 1]


def test_images_that_cannot_be_read_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def detect_frames(detector: object, frames: Iterable[Frame], options: Options) -> list[Detections]:
        return [found(label=0) for _ in frames]

    monkeypatch.setattr(MODULE, "detect_frames", detect_frames)
    Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
    data = dataset(
        changed(record(3, [[10, 10, 50, 50]], [0]), path=tmp_path / "gone.png"),
        changed(record(1), path=tmp_path / "1.png"),
    )
    evaluation = evaluate(Named(), data, max_corrupt=0.5)
    assert (evaluation.images, evaluation.objects) == (1, 0)
    assert list(evaluation.detections) == [1]
    assert "gone.png: no such image file" in evaluation.unreadable[3]
    assert "1 images cannot be read and are not evaluated" in caplog.text
    evaluation.to_json(tmp_path / "metrics.json")
    assert list(json.loads((tmp_path / "metrics.json").read_text())["unreadable"]) == ["3"]
    (tmp_path / "run").mkdir()
    report = write_report(tmp_path / "run", evaluation, data).read_text()
    assert "in the evaluation" in report
    assert "gone.png" in report
    with pytest.raises(
        DataError, match=r"1 of 2 images cannot be read, more than max_corrupt = 0\.05 allows"
    ):
        evaluate(Named(), data)


def test_evaluate_refuses_before_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "detect_frames", lambda *_, **__: pytest.fail("detected"))
    other = DetectionData(source=Path("x"), categories=CATEGORIES[:1], images=(record(),))
    with pytest.raises(ConfigError, match="3 classes differ from the data's 1"):
        evaluate(Named(), other)
    with pytest.raises(ConfigError, match="split='val'"):
        evaluate(Named(), dataset(record()), split="val")
