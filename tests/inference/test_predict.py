from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from comparisons import assert_same_detections
from PIL import Image
from tiny_models import TINY, TRAINABLE
from torch import Tensor
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.errors import ConfigError, DataError, ImageError
from querybox.inference.detections import Detections
from querybox.inference.predict import Input, batch_by_shape, predict
from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing, Target

PIXELS = np.random.default_rng(0)
Picture = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A small detector with random weights that looks at images of 64 x 96 or 96 x 64."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        "detr_r18",
        categories=[Category(id=3, name="cat"), Category(id=9, name="dog")],
        **{**TINY, "queries": 12},
    )
    detector.preprocessing = Preprocessing(short_side=64, long_side=96)
    return detector


def image(height: int, width: int) -> Picture:
    return PIXELS.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_predicts_in_pixels_of_the_original(detector: Detector) -> None:
    (found,) = predict(detector, image(200, 300), threshold=0.0)
    assert len(found) == 12
    assert found.size == (200, 300)
    assert found.source == ""
    assert found.categories == detector.categories
    assert set(found.names) <= {"cat", "dog"}
    assert (found.scores.diff() <= 0).all()
    assert found.boxes_xyxy.min() >= 0
    assert (found.boxes_xyxy <= torch.tensor([300.0, 200.0, 300.0, 200.0])).all()
    assert found.boxes_xyxy.max() > 96  # not pixels of the resized image


@pytest.mark.parametrize("recipe", ["dino_small", "dfine_small"])
def test_the_default_device_of_tensors_does_not_matter(recipe: str) -> None:
    """As `torch.set_default_device("cuda")` for a detector on the CPU; tensors on the meta device have no values."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        recipe, num_classes=2, **{**TRAINABLE, "frozen_stride": 0}, dropout=0.0
    ).eval()
    detector.preprocessing = Preprocessing(short_side=64, long_side=96)
    picture = image(100, 150)
    targets = [Target(boxes=torch.full((1, 4), 0.5), labels=torch.tensor([1]))]

    def answers() -> tuple[Detections, str, dict[str, Tensor]]:
        (found,) = predict(detector, picture, threshold=0.0, tile=96)
        detector.trace(picture, targets[0])
        torch.manual_seed(0)
        batch = ImageBatch.from_images([picture], detector.preprocessing)
        return found, found.to_yolo(), detector.criterion()(detector(batch, targets), targets)

    found, text, losses = answers()
    with torch.device("meta"):
        other, other_text, other_losses = answers()
    assert_same_detections(other, found)
    assert other_text == text
    assert_close(other_losses, losses, rtol=0, atol=0)


def test_threshold_top_k_and_nms(detector: Detector) -> None:
    picture = image(64, 96)
    (everything,) = predict(detector, picture, threshold=0.0)
    middle = float(everything.scores[5])
    (above,) = predict(detector, picture, threshold=middle)
    assert above.scores.tolist() == everything.scores[everything.scores >= middle].tolist()
    (top,) = predict(detector, picture, threshold=0.0, top_k=3)
    assert top.scores.tolist() == everything.scores[:3].tolist()
    (apart,) = predict(detector, picture, threshold=0.0, nms=0.0)
    assert apart.scores.tolist() == everything.nms(0.0).scores.tolist()
    assert len(apart) < len(everything)


SHAPES = [(64, 96), (96, 64), (128, 192), (50, 50), (64, 96), (192, 128), (64, 96), (70, 90), (64, 96)]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [image(*shape) for shape in SHAPES]


@pytest.fixture(scope="module")
def alone(detector: Detector, pictures: list[Picture]) -> list[Detections]:
    """What is found in each of the pictures by itself."""
    return [next(predict(detector, picture, threshold=0.0)) for picture in pictures]


def test_on_a_cpu_results_are_bit_identical_whatever_the_batch(
    detector: Detector, pictures: list[Picture], alone: list[Detections]
) -> None:
    for one, other in zip(predict(detector, pictures, threshold=0.0, batch_size=8), alone, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_results_come_in_order_and_do_not_depend_on_the_batch(
    detector: Detector,
    pictures: list[Picture],
    alone: list[Detections],
    batch_size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "querybox.inference.predict.effective_batch_size", lambda _, size: size
    )  # as on a GPU
    found = list(predict(detector, pictures, threshold=0.0, batch_size=batch_size))
    assert [each.size for each in found] == SHAPES
    for one, other in zip(found, alone, strict=True):
        assert_same_detections(one, other)


def test_repeated_prediction_is_bit_identical(detector: Detector) -> None:
    pictures = [image(64, 96) for _ in range(5)] + [image(96, 64)]
    first, second = (list(predict(detector, pictures, threshold=0.0, batch_size=4)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(one.labels, other.labels)


def test_a_file_and_its_pixels_give_the_same(detector: Detector, tmp_path: Path) -> None:
    picture = image(80, 100)
    Image.fromarray(picture).save(tmp_path / "a.png")
    from_file, from_pixels = predict(detector, [tmp_path / "a.png", picture], threshold=0.0)
    assert from_file.source == str(tmp_path / "a.png")
    torch.testing.assert_close(from_file.boxes_xyxy, from_pixels.boxes_xyxy, rtol=0, atol=0)


def test_mode_is_left_as_it_was(detector: Detector) -> None:
    detector.train()
    detector.decoder.eval()
    modes = [part.training for part in detector.modules()]
    assert len(set(modes)) == 2
    list(predict(detector, image(64, 96)))
    assert [part.training for part in detector.modules()] == modes
    assert torch.is_grad_enabled()
    detector.eval()


class Wrapped:
    """An engine that is no module and answers with its last layer alone."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.categories = detector.categories
        self.preprocessing = detector.preprocessing
        self.device = detector.device

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        return DetectorOutput(layers=self.detector(batch).layers[-1:])


def test_any_engine_predicts(detector: Detector) -> None:
    detector.eval()
    picture = image(64, 96)
    (ours,), (theirs,) = predict(Wrapped(detector), picture), predict(detector, picture)
    assert_same_detections(theirs, ours)


def test_results_are_ordinary_tensors(detector: Detector) -> None:
    (found,) = predict(detector, image(64, 96), threshold=0.0)
    found.boxes_xyxy.mul_(2).requires_grad_()  # an inference tensor would refuse


def test_nothing_found(detector: Detector) -> None:
    (found,) = predict(detector, image(64, 96), threshold=1.0)
    assert len(found) == 0
    assert list(predict(detector, [])) == []


@pytest.mark.parametrize(
    "arguments",
    [{"threshold": 1.5}, {"threshold": float("nan")}, {"top_k": 0}, {"nms": -0.1}, {"batch_size": 0}],
)
def test_arguments_out_of_range(detector: Detector, arguments: dict[str, float]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigError, match=rf"predict got {name}={value}; expected"):
        predict(detector, image(64, 96), **arguments)  # type: ignore[arg-type]


def test_a_missing_source_is_told_before_any_work(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        predict(detector, [image(64, 96), tmp_path / "missing.jpg"])


def test_a_broken_image_is_told_when_its_turn_comes(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    results = predict(detector, [image(64, 96), tmp_path / "broken.jpg"], batch_size=1)
    next(results)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        next(results)


def inputs(shapes: Iterator[tuple[int, int]]) -> Iterator[Input]:
    for position, shape in enumerate(shapes):
        yield Input(
            position=position, source="", size=shape, pixels=torch.zeros(3, *shape, dtype=torch.uint8)
        )


def test_batches_are_full_and_of_one_shape() -> None:
    shapes = [(2, 3), (3, 2), (2, 3), (2, 3), (3, 2)]
    batches = [[each.position for each in batch] for batch in batch_by_shape(inputs(iter(shapes)), 2)]
    assert batches == [[0, 2], [1, 4], [3]]


def test_a_rare_shape_does_not_wait_for_ever() -> None:
    """One upright image before endless others: what is read ahead of its answer stays bounded."""
    drawn = itertools.count()
    endless = ((3, 2) if number == 0 else (2, 3) for number in drawn)
    for batch in batch_by_shape(inputs(endless), 4):
        if batch[0].position == 0:
            break
    assert next(drawn) <= 8 * 4 + 4


def test_broken_images_are_told_of_and_passed_over(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    told: list[ImageError] = []
    broken = tmp_path / "broken.jpg"
    assert len(list(predict(detector, [image(64, 96), broken, image(64, 96)], on_error=told.append))) == 2
    assert "broken.jpg" in str(told[0])


def test_sources_are_read_as_they_are_needed(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def frames(sources: list[object], on_error: object, **_: object) -> Iterator[object]:
        from querybox.inference.sources import Frame

        for number in range(10_000):
            read.append(number)
            yield Frame(source=str(number), pixels=torch.zeros(3, 64, 96, dtype=torch.uint8))

    monkeypatch.setattr("querybox.inference.predict.read_frames", frames)
    results = predict(detector, image(64, 96), batch_size=2)
    assert [next(results).source for _ in range(4)] == ["0", "1", "2", "3"]
    assert len(read) == 4
