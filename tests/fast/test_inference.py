"""The optimised copy answers as the detector does, and leaves the detector alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import run_program
from tiny_models import TINY
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from querybox import Detector, ImageBatch, Target
from querybox.errors import CheckpointError, ConfigError
from querybox.fast import convolution
from querybox.fast.inference import SIZES, CachedCells
from querybox.inference.optimized_model import OptimizedModel
from querybox.modules.encoder import Encoder
from querybox.precision import Precision
from querybox.structures import Predictions

DEEP = {**TINY, "encoder_layers": 2}
Change = Callable[[nn.Module], None]


def batch(*sizes: tuple[int, int]) -> ImageBatch:
    generator = torch.Generator().manual_seed(len(sizes))
    return ImageBatch.from_images(
        [torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    )


BATCHES = [
    batch((48, 80)),
    batch((48, 80), (32, 100), (80, 45)),
    batch((80, 48), (80, 48)),
    batch((35, 70)),
]


def assert_same(ours: Predictions, theirs: Predictions, tolerance: float = 1e-4) -> None:
    assert_close(ours.logits, theirs.logits, rtol=0, atol=tolerance)
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=tolerance)


@pytest.fixture
def detector(trained: Change) -> Detector:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", num_classes=3, **DEEP).eval()
    trained(detector)
    return detector


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("detr_r18", {}),
        ("detr_r18", {"norm_first": True, "stride": 16}),
        ("detr_r18", {"position": "learned"}),
        ("detr_r18", {"encoder_layers": 0, "decoder_layers": 1, "unused_rows": (0, 2)}),
        ("detr_r50_dc5", {"backbone": "resnet50", "encoder_layers": 1}),
        ("detr_small", {"backbone": "test_efficientnet", "frozen_stride": 0}),
        ("deformable_detr_r50", {}),
        ("deformable_detr_r50_refine", {"levels": 3, "points": 3}),
        ("deformable_detr_r50_two_stage", {}),
        ("dino_r50", {"share_heads": False}),
        ("dino_small", {"backbone": "test_efficientnet", "frozen_stride": 0}),
        ("rtdetr_r18", {"backbone": "resnet18d", "encoder_width": 16}),
        ("rtdetr_r50", {"encoder_width": 48, "inference_layers": 1, "distinct": True}),
        ("rtdetr_small", {"backbone": "test_efficientnet", "frozen_stride": 0}),
        ("rtdetrv2_s", {"backbone": "resnet18d", "encoder_width": 16, "points": (3, 1, 2)}),
        ("rtdetrv2_s", {"backbone": "resnet18d", "encoder_width": 16, "discrete": True}),
        ("dfine_s", {"backbone": "hgnetv2_b0", "encoder_width": 16}),
        ("dfine_small", {"backbone": "test_efficientnet", "frozen_stride": 0}),
    ],
    ids=str,
)
@torch.no_grad()
def test_answers_are_the_same(recipe: str, settings: dict[str, Any], trained: Change) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, num_classes=3, **{**DEEP, **settings})
    trained(detector)
    optimized = detector.optimize()  # in training mode: it does not matter
    detector.eval()
    for images in BATCHES:
        (answer,) = optimized(images).layers
        assert_same(answer, detector(images).layers[-1])


@pytest.mark.parametrize("recipe", ["dino_small", "rtdetr_small"])
def test_the_default_type_of_tensors_changes_nothing(recipe: str) -> None:
    torch.manual_seed(0)
    settings = {**DEEP, "backbone": "test_efficientnet", "frozen_stride": 0, "dropout": 0.0}
    detector = Detector.from_recipe(recipe, num_classes=3, **settings)
    targets = [Target(boxes=torch.full((1, 4), 0.3), labels=torch.tensor([1]))] * len(BATCHES[0].images)
    expected = detector.optimize()(BATCHES[0]).layers[-1]
    torch.set_default_dtype(torch.float64)
    try:
        answer = detector.optimize()(BATCHES[0]).layers[-1]
        losses = detector.criterion()(detector.train()(BATCHES[0], targets), targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(answer, expected, tolerance=0)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_autocast_does_not_change_the_precision(detector: Detector) -> None:
    optimized = detector.optimize()
    plain = optimized(BATCHES[0]).layers[-1].logits
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(optimized(BATCHES[0]).layers[-1].logits, plain, rtol=0, atol=0)


@torch.no_grad()
def test_boxes_are_measured_from_the_same_place_at_the_edge() -> None:
    """DINO keeps references further from 0 and 1 than Deformable DETR does."""
    torch.manual_seed(0)
    detector = Detector.from_recipe("dino_r50", num_classes=3, **DEEP)
    for name, parameter in detector.named_parameters():
        if name.startswith("queries.proposals.box_head") and parameter.shape == (4,):
            parameter.fill_(20.0)
    optimized = detector.optimize()
    detector.eval()
    proposals = detector(BATCHES[0]).proposals
    assert proposals is not None
    assert (proposals.boxes == 1).all()
    (answer,) = optimized(BATCHES[0]).layers
    assert_same(answer, detector(BATCHES[0]).layers[-1])


@torch.no_grad()
def test_the_published_model(trained: Change) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r50", num_classes=91).eval()
    trained(detector)
    images = batch((48, 64), (64, 48))
    assert_same(detector.optimize()(images).layers[-1], detector(images).layers[-1])


def test_public_functions_answer_the_same(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, or where oneDNN's own operators are not found."""
    monkeypatch.setattr(convolution, "has_onednn", lambda *_: False)
    optimized = detector.optimize()
    assert not any(getattr(part, "onednn", False) for part in optimized.model.modules())
    for images in BATCHES:
        assert_same(optimized(images).layers[-1], detector(images).layers[-1])


def test_the_detector_is_left_alone(detector: Detector) -> None:
    detector.train()
    detector.decoder.eval()
    modes = {name: part.training for name, part in detector.named_modules()}
    trained = {name: parameter.requires_grad for name, parameter in detector.named_parameters()}
    weights = copy.deepcopy(detector.state_dict())
    kinds = [type(part) for part in detector.modules()]
    optimized = detector.optimize(precision="bf16")
    optimized(BATCHES[0])
    assert {name: part.training for name, part in detector.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in detector.named_parameters()} == trained
    assert [type(part) for part in detector.modules()] == kinds
    assert_close(detector.state_dict(), weights, rtol=0, atol=0)
    ours = {parameter.data_ptr() for parameter in optimized.model.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in detector.parameters()}


@torch.no_grad()
def test_later_training_reaches_predict_but_no_copy(detector: Detector) -> None:
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    optimized = detector.optimize()
    before = optimized.predict(picture.permute(1, 2, 0).numpy(), threshold=0.0)[0].scores
    assert_close(detector.predict(picture.permute(1, 2, 0).numpy(), threshold=0.0)[0].scores, before)
    for parameter in detector.parameters():
        parameter.mul_(0.5)
    assert_close(optimized.predict(picture.permute(1, 2, 0).numpy(), threshold=0.0)[0].scores, before)
    after = detector.predict(picture.permute(1, 2, 0).numpy(), threshold=0.0)[0].scores
    assert float((after - before).abs().max()) > 1e-3


def test_saving_is_refused(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="save the original detector"):
        detector.optimize().save(tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_unknown_types_are_refused(detector: Detector) -> None:
    with pytest.raises(ConfigError, match=r"precision='int8'; expected one of auto, float32, bf16, fp16"):
        unwrap(OptimizedModel.__init__)(object(), detector, precision="int8")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(detector: Detector, precision: Precision) -> None:
    optimized = detector.optimize(precision=precision)
    for images in BATCHES:
        (answer,) = optimized(images).layers
        assert answer.logits.dtype == answer.boxes.dtype == torch.float32
        assert_same(answer, detector(images).layers[-1], tolerance=0.05)


def test_positions_are_kept_for_few_sizes(detector: Detector) -> None:
    optimized = detector.optimize()
    kept = optimized.model.encode
    assert isinstance(kept, CachedCells)
    for width in range(32, 32 * (SIZES + 6), 32):
        optimized(batch((32, width)))
    assert kept.locate_unpadded.cache_info().currsize == SIZES
    hits = kept.locate_unpadded.cache_info().hits
    optimized(batch((32, width), (32, width)))
    assert kept.locate_unpadded.cache_info().hits == hits + 1


class NoWaiting(TorchDispatchMode):
    """Refuses to read a tensor's value, for which a GPU would have to be waited for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        waiting = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal)
        assert func.overloadpacket not in waiting, f"{func} waits for the device"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("images", BATCHES, ids=["one", "padded", "two", "odd"])
def test_the_device_is_not_waited_for(detector: Detector, images: ImageBatch) -> None:
    optimized = detector.optimize()
    with NoWaiting():  # type: ignore[no-untyped-call]
        optimized(images)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():  # type: ignore[no-untyped-call]
        bool(images.padding_mask.any())


COMPILED = """
import torch
from torch.testing import assert_close

from querybox import Detector, ImageBatch

graphs = []
compiled = torch.compile


def count(graph, _):
    graphs.append(graph)
    return graph.forward


torch.compile = lambda function, **options: compiled(function, backend=count, **options)
detector = Detector.from_recipe("detr_r18", num_classes=3, **TINY).eval()
optimized = detector.optimize(compile=True)


def compare(*sizes):
    images = ImageBatch.from_images([torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes])
    ours, theirs = optimized(images).layers[-1], detector(images).layers[-1]
    assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-4)
    assert_close(ours.boxes, theirs.boxes, rtol=0, atol=1e-4)


for size in [(96, 128), (64, 160), (128, 96), (160, 160), (96, 224), (192, 64)]:
    compare(size)
assert 3 <= len(graphs) <= 4, len(graphs)  # backbone, encoder, decoder
for size in [(96, 128), (64, 160), (160, 96)]:
    compare(size, (64, 64))
assert len(graphs) <= 7, len(graphs)  # once more with padding, for any batch size
"""


def test_compiled_once_for_all_sizes(tmp_path: Path) -> None:
    """In a program of its own, where no shapes are checked: the checks would be compiled too."""
    run_program(f"TINY = {TINY}\n{COMPILED}", tmp_path)


class Backwards(nn.Module):
    """An encoder of somebody's own, which wants its mask."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: list[torch.Tensor], padding_mask: torch.Tensor) -> Any:
        return self.encoder([feature.flip(3) for feature in features], padding_mask.flip(2))


def test_parts_of_ones_own_are_copied_as_they_are(detector: Detector) -> None:
    assert isinstance(detector.encoder, Encoder)
    composed = Detector(
        detector.backbone,
        detector.neck,
        Backwards(detector.encoder),
        detector.queries,
        detector.decoder,
        categories=detector.categories,
        preprocessing=detector.preprocessing,
    ).eval()
    for images in BATCHES:
        assert_same(composed.optimize()(images).layers[-1], composed(images).layers[-1])
