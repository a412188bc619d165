from __future__ import annotations

import math
import pickle
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from querybox.data import DataSettings, read_dataset, train_loader
from querybox.data.transforms import Sample
from querybox.data.user_transform import UserTransform, call_albumentations, describe
from querybox.errors import ConfigError
from querybox.training.processes import next_batches

SAMPLE = Path(__file__).parent.parent / "data" / "coco_sample"


@pytest.fixture
def sample() -> Sample:
    pixels = torch.arange(3 * 20 * 30, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(3, 20, 30)
    return Sample(pixels, torch.tensor([[1.0, 2, 10, 12], [20, 15, 30, 20]]), torch.tensor([3, 1]))


def apply(transform: Any, sample: Sample, seed: int = 0) -> Sample:
    return UserTransform(transform, 4, pickled=True)(sample, np.random.default_rng(seed), "a.jpg")


class Scripted:
    """Returns what a function makes of (image, target)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, image: Any, target: Any) -> Any:
        return self.function(image, target)


def refused(function: Callable[..., Any], sample: Sample) -> str:
    with pytest.raises(ConfigError) as raised:
        UserTransform(Scripted(function), 4, pickled=False)(sample, np.random.default_rng(0), "a.jpg")
    return str(raised.value)


def test_boxes_and_labels_go_through_torchvision(sample: Sample) -> None:
    flipped = apply(v2.RandomHorizontalFlip(1.0), sample)
    torch.testing.assert_close(flipped.pixels, sample.pixels.flip(2), rtol=0, atol=0)
    assert flipped.boxes_xyxy.tolist() == [[20, 2, 29, 12], [0, 15, 10, 20]]
    assert flipped.labels.tolist() == [3, 1]
    assert type(flipped.pixels) is type(flipped.boxes_xyxy) is torch.Tensor
    resized = apply(v2.Resize([40, 90]), sample)
    assert resized.pixels.shape == (3, 40, 90)
    assert resized.boxes_xyxy.tolist() == [[3, 4, 30, 24], [60, 30, 90, 40]]


def test_labels_follow_the_boxes_that_are_dropped(sample: Sample) -> None:
    corner = v2.Compose([v2.Lambda(identity), Cut(12, 15), v2.SanitizeBoundingBoxes()])
    cut = apply(corner, sample)
    assert cut.pixels.shape == (3, 12, 15)
    assert cut.boxes_xyxy.tolist() == [[1, 2, 10, 12]]
    assert cut.labels.tolist() == [3]
    # Without SanitizeBoundingBoxes the second box is clipped to nothing.
    assert apply(Cut(12, 15), sample).labels.tolist() == [3]


@pytest.mark.parametrize("degrees", [90, 17, 39])
def test_rotations_that_enlarge_the_image(sample: Sample, degrees: float) -> None:
    """torchvision computes the size of the image in two ways, which differ by a pixel at most angles."""
    rotation = v2.RandomRotation((degrees, degrees), expand=True)
    rotated = apply(rotation, sample)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = rotated.pixels.shape[1:]
    assert (height, width) == pytest.approx((20 * cos + 30 * sin, 30 * cos + 20 * sin), abs=2)
    x, y = (
        np.array([[1, 10, 10, 1], [20, 30, 30, 20]]) - 15,
        np.array([[2, 2, 12, 12], [15, 15, 20, 20]]) - 10,
    )
    x, y = x * cos + y * sin + width / 2, y * cos - x * sin + height / 2
    expected = np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], 1)
    np.testing.assert_allclose(rotated.boxes_xyxy, expected, atol=1.5)
    empty = apply(rotation, Sample(sample.pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    assert empty.pixels.shape == rotated.pixels.shape
    assert empty.boxes_xyxy.shape == (0, 4)


def test_other_formats_of_boxes_are_converted(sample: Sample) -> None:
    converted = apply(v2.ConvertBoundingBoxFormat("CXCYWH"), sample)
    torch.testing.assert_close(converted.boxes_xyxy, sample.boxes_xyxy)


def identity(inputs: Any) -> Any:
    return inputs


class Cut(v2.Transform):  # type: ignore[misc] # of an untyped package
    """Keeps the top left corner."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = height, width

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = self.size
        return self._call_kernel(v2.functional.crop, inpt, top=0, left=0, height=height, width=width)


class Noise:
    """Shifts all values by random numbers of every kind."""

    def __call__(self, image: Any, target: Any) -> Any:
        shift = torch.randint(0, 9, (1,)) + int(np.random.randint(9)) + random.randrange(9)
        return image // 2 + shift.to(torch.uint8), target


def test_random_numbers_are_those_of_the_seed_and_leave_the_global_ones_alone(sample: Sample) -> None:
    states = torch.get_rng_state(), np.random.get_state(legacy=True), random.getstate()
    shifts = [int(apply(Noise(), sample, seed).pixels[0, 0, 0]) for seed in (0, 0, 1, 2, 3, 4)]
    assert shifts[0] == shifts[1]
    assert len(set(shifts)) > 2
    torch.testing.assert_close(torch.get_rng_state(), states[0], rtol=0, atol=0)
    assert str(np.random.get_state(legacy=True)) == str(states[1])
    assert random.getstate() == states[2]


def test_batches_do_not_depend_on_workers() -> None:
    data = read_dataset(SAMPLE, "train")
    transform = v2.Compose([v2.ColorJitter(0.5), v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])

    def pixels(workers: int, seed: int = 0) -> list[torch.Tensor]:
        settings = DataSettings(image_size=64, workers=workers, mosaic=0.5)
        return [
            batch.pixels
            for batch in train_loader(data, settings, batch_size=1, seed=seed, transform=transform)
        ]

    expected = pixels(0)
    for one, other in zip(pixels(1), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert any(
        one.shape != other.shape or bool((one != other).any())
        for one, other in zip(pixels(0, seed=1), expected, strict=True)
    )


def only_landscapes(image: Any, target: Any) -> Any:
    if image.shape[1] > image.shape[2]:
        raise ValueError(f"cannot do {image.shape[1]} rows")
    return image, target


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_that_of_the_main_process(workers: int) -> None:
    data = read_dataset(SAMPLE, "train")
    settings = DataSettings(image_size=64, workers=workers)
    batches = iter(train_loader(data, settings, batch_size=3, seed=0, transform=only_landscapes))
    with pytest.raises(ConfigError) as raised:
        next_batches(batches, 1)
    message = r"transform: failed on .*000000542145.jpg \(ValueError: cannot do 250 rows\); expected a transform of .*"
    assert re.fullmatch(message, str(raised.value))


def blacken(image: Any, target: Any) -> Any:
    image[:, :10] = 0
    target["boxes"][:] = 0
    target["labels"][:] = 0
    return image, target


def blackened(*, image: Any, bboxes: Any, labels: Any) -> dict[str, Any]:
    image[:10] = 0
    bboxes[:] = 0
    labels[:] = 0
    return {"image": image, "bboxes": bboxes, "labels": labels}


def test_transforms_may_work_in_place(sample: Sample) -> None:
    interleaved = sample.pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as images are decoded
    for transform, call in ((blacken, None), (blackened, call_albumentations)):
        given = Sample(interleaved.clone(), sample.boxes_xyxy.clone(), sample.labels.clone())
        user = UserTransform(transform, 4, pickled=True)
        user.call = call or user.call
        assert not user(given, np.random.default_rng(0), "a.jpg").pixels[:, :10].any()
        torch.testing.assert_close(given.pixels, sample.pixels, rtol=0, atol=0)
        torch.testing.assert_close(given.boxes_xyxy, sample.boxes_xyxy, rtol=0, atol=0)
        torch.testing.assert_close(given.labels, sample.labels, rtol=0, atol=0)


def test_what_cannot_be_trained_on_is_refused(sample: Sample) -> None:
    assert refused(lambda image, _: image, sample) == (
        "transform: on a.jpg: returned a Image; expected (image, target)"
    )
    assert "returned a target with NoneType as 'boxes'" in refused(lambda image, _: (image, {}), sample)
    plain = refused(lambda image, target: (image, {**target, "boxes": torch.zeros(2, 4)}), sample)
    assert "returned a target with Tensor as 'boxes'; expected torchvision.tv_tensors.BoundingBoxes" in plain
    sized = refused(lambda image, target: (image[:, :10], target), sample)
    assert "an image of 10x30 (height x width) and boxes of one of 20x30; expected those of the same" in sized
    floats = refused(lambda image, target: (image.float() / 255, target), sample)
    assert "of torch.float32 [3, 20, 30] as image" in floats
    assert floats.endswith("querybox normalises images itself: remove ToDtype, ToFloat and Normalize")
    fewer = refused(lambda image, target: (image, {**target, "labels": target["labels"][:1]}), sample)
    assert "returned 2 boxes and 1 labels; expected one integer label for each box" in fewer
    unknown = refused(lambda image, target: (image, {**target, "labels": target["labels"] + 1}), sample)
    assert unknown == "transform: on a.jpg: returned the labels [2, 4]; expected labels in 0 to 3"
    infinite = refused(endless, sample)
    assert infinite == "transform: on a.jpg: returned boxes that are NaN or infinite"
    failing = refused(lambda image, target: 1 / 0, sample)
    assert failing.startswith(
        "transform: failed on a.jpg (ZeroDivisionError: division by zero); expected a transf"
    )
    masked = sample._replace(masks=torch.ones(2, 20, 30, dtype=torch.bool))
    for masks in ({}, {"masks": None}):
        unmasked = refused(
            lambda image, target, masks=masks: (
                image,
                {"boxes": target["boxes"], "labels": target["labels"], **masks},
            ),
            masked,
        )
        assert (
            "returned a target without 'masks', which the model is trained on; expected those of the"
            in unmasked
        )
    with pytest.raises(ConfigError, match=r"transform: got 3; expected a transform of torchvision"):
        UserTransform(3, 4, pickled=False)


def endless(image: Any, target: Any) -> Any:
    boxes = target["boxes"]
    return image, {**target, "boxes": tv_tensors.wrap(boxes * torch.inf, like=boxes)}


def test_transforms_that_workers_cannot_get_are_refused(sample: Sample) -> None:
    with pytest.raises(ConfigError, match=r"cannot be sent to the processes.*or set data.workers=0"):
        UserTransform(lambda image, target: (image, target), 4, pickled=True)
    assert pickle.loads(pickle.dumps(UserTransform(v2.Grayscale(3), 4, pickled=True))).classes == 4
    alone = UserTransform(lambda image, target: (image, target), 4, pickled=False)
    assert alone(sample, np.random.default_rng(0), "a.jpg").labels.tolist() == [3, 1]


def test_descriptions_are_the_same_in_every_process() -> None:
    assert describe(v2.Compose([v2.RandomHorizontalFlip(0.3)])) == "Compose( RandomHorizontalFlip(p=0.3))"
    assert describe(identity) == f"{__name__}.identity"
    assert describe(Noise()) == f"{__name__}.Noise"


class Compose:
    """Called like a Compose of Albumentations 2, whose package is optional: flips boxes and drops the second."""

    def __init__(self, bbox_params: Any = None) -> None:
        self.processors = {} if bbox_params is None else {"bboxes": SimpleNamespace(params=bbox_params)}
        self.seed = 0

    def set_random_seed(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, *, image: Any, bboxes: Any, labels: Any) -> dict[str, Any]:
        assert (image.shape, image.dtype) == ((20, 30, 3), np.uint8)
        assert bboxes.tolist() == [[1, 2, 10, 12], [20, 15, 30, 20]]
        x0, y0, x1, y1 = bboxes[0]
        kept = [[image.shape[1] - x1, y0, image.shape[1] - x0, y1]]
        return {"image": image[:, ::-1] // 2 + self.seed % 99, "bboxes": kept, "labels": [float(labels[0])]}


@pytest.fixture
def albumentations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", ModuleType("albumentations"))
    monkeypatch.setattr(Compose, "__module__", "albumentations.core.composition")


@pytest.mark.usefixtures("albumentations")
def test_boxes_and_labels_go_through_albumentations(sample: Sample) -> None:
    params = SimpleNamespace(format="pascal_voc", label_fields=["labels"])
    transform = UserTransform(Compose(params), 4, pickled=False)
    one, same, other = (transform(sample, np.random.default_rng(seed), "a.jpg") for seed in (0, 0, 1))
    assert one.boxes_xyxy.tolist() == [[20, 2, 29, 12]]
    assert one.labels.tolist() == [3]
    assert (one.labels.dtype, one.boxes_xyxy.dtype) == (torch.int64, torch.float32)
    flipped = sample.pixels.flip(2) // 2
    shift = (one.pixels - flipped).unique()
    assert len(shift) == 1
    torch.testing.assert_close(same.pixels, one.pixels, rtol=0, atol=0)
    assert (other.pixels != one.pixels).any()


@pytest.mark.usefixtures("albumentations")
@pytest.mark.parametrize(
    "params",
    [
        None,
        SimpleNamespace(format="yolo", label_fields=["labels"]),
        SimpleNamespace(format="pascal_voc", label_fields=["class_labels"]),
        SimpleNamespace(format="pascal_voc", label_fields=None),
    ],
)
def test_albumentations_without_boxes_and_labels_is_refused(params: Any) -> None:
    with pytest.raises(
        ConfigError, match=r'does not return boxes .*BboxParams\(format="pascal_voc", label_fie'
    ):
        UserTransform(Compose(params), 4, pickled=False)
