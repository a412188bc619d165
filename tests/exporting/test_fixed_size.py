"""Exports for images of one size."""

from __future__ import annotations

import json
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparisons import assert_same_detections
from PIL import Image
from traces import made_once, trace_once

from querybox.data import ImageRecord
from querybox.detector import Detector
from querybox.errors import CheckpointError, ConfigError
from querybox.evaluation.evaluate import detect_records
from querybox.exporting import ExportedModel, export, graph, load_exported
from querybox.exporting.card import Card
from querybox.exporting.check import verify
from querybox.exporting.graph import Graph
from querybox.exporting.signature import Port, check_signature, output_ports
from querybox.inference.predict import predict
from querybox.structures import DetectorOutput, ImageBatch, Preprocessing

noise = torch.Generator().manual_seed(0)


def random_pixels(count: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=noise)


def answers(detector: Detector, pixels: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of the detector itself."""
    with torch.inference_mode():
        values = Graph(detector.eval())(pixels, sizes)
    return dict(zip(Card.of(detector, "float32").outputs, values, strict=True))


def traced(detector: Detector, size: tuple[int, int]) -> ExportedModel:
    """Return the model that a file of this size would be made from."""
    card = Card.of(detector, "float32", size)
    program = torch.inference_mode()(trace_once(detector, size, padded=card.padded).module())
    return ExportedModel(card, lambda *inputs: dict(zip(card.outputs, program(*inputs), strict=True)))


@pytest.fixture(scope="module")
def stretching(dfine: Detector) -> Detector:
    """D-FINE for stretched images, as published."""
    dfine.preprocessing = Preprocessing(short_side=640, long_side=640, resizing="stretch")
    return dfine


def test_stretched_images_fill_the_size(stretching: Detector) -> None:
    engine = traced(stretching, (96, 128))
    assert (engine.preprocessing.short_side, engine.preprocessing.long_side) == (96, 128)
    assert verify(stretching, engine).batches == 1
    pixels, sizes = random_pixels(2, 96, 128), torch.tensor([[96, 128]] * 2)
    scores = answers(stretching, pixels, sizes)["scores"]
    torch.testing.assert_close(engine.run(pixels, sizes)["scores"], scores, rtol=0, atol=1e-4)
    message = "of the fixed size 96x128 got images of {} pixels; expected this size"
    with pytest.raises(ConfigError, match=message.format("64x96")):
        engine.run(random_pixels(1, 64, 96), torch.tensor([[64, 96]]))
    with pytest.raises(ConfigError, match=message.format("90x128, 96x128")):
        engine.run(pixels, torch.tensor([[90, 128], [96, 128]]))


def test_an_image_that_does_not_fit_is_named(detector: Detector, tmp_path: Path) -> None:
    engine = ExportedModel(Card.of(detector, "float32", (80, 104)), lambda *_: {})
    Image.new("RGB", (60, 90)).save(tmp_path / "upright.png")
    for source, name in ((tmp_path, "upright.png"), (random_pixels(1, 90, 60)[0], "an image in memory")):
        with pytest.raises(
            ConfigError, match=f"{name}: an exported model of the fixed size 80x104 got images of"
        ):
            list(predict(engine, source))


def test_sizes_are_checked_before_the_first_image_is_run(detector: Detector, tmp_path: Path) -> None:
    """By the headers of files, or by annotations."""
    engine = ExportedModel(Card.of(detector, "float32", (80, 104)), lambda *_: pytest.fail("was run"))
    sizes = {"a": (90, 60), "b": (60, 90), "c": (90, 60), "d": (40, 90)}  # (width, height)
    for name, size in sizes.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    nothing: dict[str, Any] = {"boxes_xyxy": np.zeros((0, 4)), "areas": np.zeros(0)}
    nothing |= {"labels": np.zeros(0, int), "crowd": np.zeros(0, bool)}
    records = [
        ImageRecord(id=number, path=tmp_path / f"{name}.png", width=width, height=height, **nothing)
        for number, (name, (width, height)) in enumerate(sizes.items())
    ]
    message = (
        r"b\.png, .*d\.png: an exported model of the fixed size 80x104 got images of 96x43, 96x64 pixels"
    )
    with pytest.raises(ConfigError, match=message):
        predict(engine, tmp_path)
    with pytest.raises(ConfigError, match=message):
        detect_records(engine, records)


class Padded:
    """A detector that is given its images padded to a size."""

    def __init__(self, detector: Detector, engine: ExportedModel) -> None:
        assert engine.card.size is not None
        self.detector, self.size = detector.eval(), engine.card.size
        self.preprocessing = engine.card.preprocessing
        self.categories, self.device = detector.categories, detector.device

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        height, width = batch.images.shape[2:]
        sides = (0, self.size[1] - width, 0, self.size[0] - height)
        images, mask = F.pad(batch.images, sides), F.pad(batch.padding_mask, sides, value=True)
        return self.detector(ImageBatch(images=images, padding_mask=mask, sizes=batch.sizes))


@pytest.mark.parametrize(("kind", "size"), [("detector", (80, 104)), ("stretching", (96, 128))])
def test_tiles_fit_the_size(kind: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    """Square tiles are padded or stretched to it; so is the whole image, which is landscape."""
    engine = traced(request.getfixturevalue(kind), size)
    plain = Padded(request.getfixturevalue(kind), engine)
    picture = random_pixels(1, 150, 200)[0]
    ((ours,), (theirs,)) = (predict(each, picture, threshold=0, tile=100) for each in (engine, plain))
    assert_same_detections(ours, theirs, pixels=0.02)
    (whole,) = predict(engine, picture, threshold=0)
    assert len(ours) > len(whole) > 0


def test_other_images_are_padded_to_the_size(detector: Detector, tmp_path: Path) -> None:
    with made_once():
        done = export(detector, tmp_path / "model.xml", to="openvino", size=(80, 104))
    assert done.verification.batches == 2
    engine = load_exported(done.files[0])
    assert engine.card == Card.of(detector, "float32", (80, 104))
    pixels, sizes = random_pixels(2, 72, 90), torch.tensor([[72, 81], [60, 90]])
    expected = answers(detector, F.pad(pixels, (0, 14, 0, 8)), sizes)
    for name in ("logits", "boxes", "masks"):
        torch.testing.assert_close(engine.run(pixels, sizes)[name], expected[name], rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="80x104 got images of 96x64 pixels; expected at most this size"):
        engine.run(random_pixels(1, 96, 64), torch.tensor([[96, 64]]))
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    (found,) = predict(engine, picture, threshold=0.0)
    assert found.size == (60, 90)
    assert found.boxes_xyxy.shape == (8, 4)
    assert found.masks is not None
    assert len(found.masks) == 8


def test_the_best_detections_have_masks(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, sizes = random_pixels(1, 80, 104), torch.tensor([[60, 90]])
    masks = answers(detector, pixels, sizes)["masks"]
    monkeypatch.setattr(graph, "MAX_MASKS", 5)
    engine = traced(detector, (80, 104))
    torch.testing.assert_close(engine.run(pixels, sizes)["masks"], masks[:, :5], rtol=0, atol=1e-4)
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    (best,) = predict(engine, picture, threshold=0.0, top_k=5)
    assert best.masks is not None
    assert len(best.masks) == 5
    with pytest.raises(
        ConfigError, match=r"masks of the 5 highest-scoring detections .*: pass top_k=100, or"
    ):
        list(predict(engine, picture, threshold=0.0))


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        ({"short_side": 800, "long_side": 1333}, {"short_side": 480, "long_side": 640}),
        (
            {"short_side": 320, "long_side": 500, "resizing": "facebook"},
            {"short_side": 320, "long_side": 500},
        ),
        (
            {"short_side": 640, "long_side": 640, "resizing": "stretch"},
            {"short_side": 480, "long_side": 640, "resizing": "stretch"},
        ),
    ],
)
def test_images_are_resized_to_the_size(
    detector: Detector, preprocessing: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = detector.preprocessing
    detector.preprocessing = Preprocessing(**preprocessing)
    card = Card.of(detector, "float32", (480, 640))
    detector.preprocessing = before
    assert card.preprocessing == Preprocessing(**expected)
    assert card.padded == ("resizing" not in expected)


def test_the_card_says_the_size(detector: Detector) -> None:
    card = Card.of(detector, "float32", (96, 128))
    text = json.loads(card.to_json())
    assert text["size"] == [96, 128]
    assert text["inputs"]["pixels"].startswith("uint8 [1, 3, 96, 128]: an RGB image")
    assert Card.from_json(card.to_json(), "a.onnx") == card
    inputs = {"pixels": Port("uint8", (1, 3, 96, 128)), "sizes": Port("int64", (1, 2))}
    check_signature("a.onnx", card, inputs, output_ports(card))
    other = {**inputs, "pixels": Port("uint8", (1, 3, 96, 64))}
    with pytest.raises(CheckpointError, match=r"a\.onnx: 'pixels' is .*it does not fit its card"):
        check_signature("a.onnx", card, other, output_ports(card))
    with pytest.raises(CheckpointError, match=r"a\.onnx: corrupt, its card cannot be read"):
        Card.from_json(json.dumps({**text, "size": [30_000, 30_000]}), "a.onnx")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (640, r"got size=640; expected \(height, width\)"),
        ((640, 32), "got size=32; expected an integer, 64 to"),
        ((8192, 8192), "expected at most 8,388,608 pixels"),
    ],
)
def test_sizes_that_cannot_be(detector: Detector, tmp_path: Path, size: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unwrap(export)(detector, tmp_path / "a.xml", to="openvino", size=size)
    assert not list(tmp_path.iterdir())
