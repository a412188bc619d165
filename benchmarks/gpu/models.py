"""The models that are measured, ours and those of transformers with the same weights, on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from benchmarks import peers, setup
from benchmarks.measure import Absent
from benchmarks.setup import NUM_CLASSES
from querybox.detector import Detector
from querybox.losses.classification import FocalLoss
from querybox.losses.criterion import Criterion
from querybox.losses.matcher import HungarianMatcher
from querybox.models.layouts.huggingface import HUGGINGFACE, HUGGINGFACE_DEFORMABLE
from querybox.models.layouts.layout import Layout
from querybox.modules.decoder import ReferenceDecoder
from querybox.structures import ImageBatch

T = TypeVar("T")
Precision = Literal["float32", "tf32", "bf16"]
"""`tf32` is float32 whose matrix products and convolutions round their inputs to 10 bits on the tensor cores."""
QUICK: dict[str, Any] = {
    "width": 64,
    "feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 20,
}
"""Settings of all models of a quick run."""
QUICK_RESNET = {"backbone": "test_resnet"}
QUICK_HYBRID: dict[str, Any] = {"encoder_width": 64, "encoder_feedforward": 64}
CELL = 32
"""Pixels of a side of the cells of the coarsest map; transformers' RT-DETR needs images that are multiples of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A detector of querybox and, where transformers has it, its counterpart there."""

    name: str
    title: str
    recipe: str
    peer: Callable[[Detector], Any] | None
    """Builds the model of transformers with the weights of the detector; None where transformers has no such model."""
    ranked: bool = False
    """Whether queries are ranked by scores of the encoder, so that rounding may change their order."""
    criterion: Callable[[], Criterion] | None = None
    """The criterion of the counterpart; None: the recipe's own."""
    same_losses: bool = True
    """Whether the counterpart has all losses of the criterion."""
    trained: tuple[str, ...] = ("layer2", "layer3", "layer4")
    """Parts of the names of those parameters of the counterpart's backbone that are trained."""
    quick: Mapping[str, Any] = field(hash=False)
    """Settings of the model of a quick run, in addition to `QUICK`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all rows need to know of the run."""

    device: torch.device
    quick: bool
    """Small models and images, few samples, nothing compiled: shows that all rows work, measures nothing."""

    def size(self, pixels: int) -> tuple[int, int]:
        """Return height and width of the images whose full size is `pixels` a side."""
        side = pixels // 8 // CELL * CELL if self.quick else pixels
        return side, side

    def batch(self, count: int) -> int:
        """Return how many images to take instead of the full count."""
        return min(count, 2) if self.quick else count

    def some(self, every: Sequence[T]) -> Sequence[T]:
        """Return all values that a row is repeated for, the last one alone in a quick run."""
        return every[-1:] if self.quick else every

    def seconds(self, full: float) -> float:
        """Return the time for samples."""
        return 0.0 if self.quick else full

    def synchronize(self) -> None:
        """Wait until the device has done all that it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def transformers_detr(detector: Detector) -> Any:
    """Return transformers' DETR."""
    from transformers import DetrConfig, DetrForObjectDetection

    return with_weights(DetrForObjectDetection(DetrConfig(**peer_options(detector))), HUGGINGFACE, detector)


def transformers_deformable_detr(detector: Detector) -> Any:
    """Return transformers' Deformable DETR with refined boxes."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    options = {**peer_options(detector), "num_feature_levels": 4, "with_box_refine": True}
    model = DeformableDetrForObjectDetection(DeformableDetrConfig(**options))
    return with_weights(model, HUGGINGFACE_DEFORMABLE, detector)


def transformers_hybrid(model_class: str, detector: Detector) -> Any:
    """Return transformers' RT-DETR or D-FINE."""
    with TemporaryDirectory() as folder:
        return peers.transformers_from_files(detector, model_class, Path(folder) / "model")


def peer_options(detector: Detector) -> dict[str, Any]:
    """Return the settings of a recipe as transformers calls them; attention fused, the losses of all layers."""
    assert detector.recipe is not None
    recipe: Any = detector.recipe
    return {
        "num_labels": len(detector.categories),
        "auxiliary_loss": True,
        "attn_implementation": "sdpa",
        "backbone": recipe.backbone.partition(".")[0],
        "d_model": recipe.width,
        "num_queries": recipe.queries,
        "dropout": recipe.dropout,
        **{f"{part}_layers": getattr(recipe, f"{part}_layers") for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": recipe.feedforward for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": recipe.heads for part in ("encoder", "decoder")},
    }


def with_weights(model: Any, layout: Layout, detector: Detector) -> Any:
    """Give a model of transformers the weights of `detector`."""
    ours, state = detector.state_dict(), model.state_dict()
    with torch.no_grad():
        for tensor in state.values():
            if tensor.is_floating_point():
                tensor.normal_()  # or heads that are alike would be taken for one
        for name, tensor in layout.to_ours(state).items():
            tensor.copy_(ours[name])
    return model


def focal_criterion() -> Criterion:
    """Return the criterion that transformers has by default for Deformable DETR."""
    return Criterion(HungarianMatcher(1.0, 5.0, 2.0, classification=FocalLoss()), classification=FocalLoss())


MODELS = (
    Model(
        name="detr",
        title="DETR R50",
        recipe="detr_r50",
        peer=transformers_detr,
        criterion=Criterion,
        quick=QUICK_RESNET,
    ),
    Model(
        name="deformable-detr",
        title="Deformable DETR R50, refined boxes",
        recipe="deformable_detr_r50_refine",
        peer=transformers_deformable_detr,
        criterion=focal_criterion,
        quick=QUICK_RESNET,
    ),
    Model(
        name="dino", title="DINO R50, 4 maps", recipe="dino_r50", peer=None, ranked=True, quick=QUICK_RESNET
    ),
    Model(
        name="rtdetr",
        title="RT-DETR R50",
        recipe="rtdetr_r50",
        peer=partial(transformers_hybrid, "RTDetrForObjectDetection"),
        ranked=True,
        trained=("stages",),
        quick={**QUICK_HYBRID, "backbone": "resnet18d.ra2_in1k"},
    ),
    Model(
        name="dfine",
        title="D-FINE L",
        recipe="dfine_l",
        peer=partial(transformers_hybrid, "DFineForObjectDetection"),
        ranked=True,
        same_losses=False,  # transformers has none for the initial boxes and the last layer's distributions
        trained=("stages",),
        quick={**QUICK_HYBRID, "backbone": "hgnetv2_b0.ssld_stage1_in22k_in1k"},
    ),
)
"""The models that are measured."""


@cache
def detector(model: Model, *, quick: bool) -> Detector:
    """Return the detector of `model` on the CPU, whose batch norms have the statistics of real images."""
    if model.recipe == "detr_r50" and not quick:
        return setup.detector()
    torch.manual_seed(1)
    changes = {**QUICK, **model.quick} if quick else {}
    found = Detector.from_recipe(model.recipe, num_classes=NUM_CLASSES, **changes)
    norms = [module for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        if isinstance(found.decoder, ReferenceDecoder):
            first = found.decoder.class_heads[0].state_dict()
            for head in found.decoder.class_heads:
                head.load_state_dict(first)  # transformers' Deformable DETR has one for all layers
            for parameter in found.decoder.box_heads.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))  # fresh ones answer the same to everything
        for name, parameter in found.named_parameters():
            if name.endswith("proposals.class_head.weight"):
                parameter.normal_(0, 0.05)  # or rounding would decide which proposals become queries
        found(setup.images(2, (64, 64) if quick else (256, 320)))
    for norm in norms:
        norm.momentum = 0.1
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()  # frozen ones have no counter in files
    return found.eval()


def ours(model: Model, run: Run) -> Detector:
    """Return a copy of the detector on the device."""
    return copy.deepcopy(detector(model, quick=run.quick)).to(run.device)


def theirs(model: Model, run: Run) -> Any:
    """Return a copy of the model of transformers on the device, in evaluation mode.

    Raises:
        Absent: transformers has no such model.
    """
    return copy.deepcopy(counterpart(model, quick=run.quick)).to(run.device)


@cache
def counterpart(model: Model, *, quick: bool) -> Any:
    """Return the model of transformers on the CPU with the weights of the detector."""
    if model.peer is None:
        raise Absent(f"transformers has no {model.title}")
    return model.peer(detector(model, quick=quick)).eval()


def batch_on(run: Run, model: Model, count: int, pixels: int) -> ImageBatch:
    """Return so many square images on the device, normalised for `model`; none is padded."""
    contents, sizes = pixels_of(count, run.size(pixels))
    preprocessing = detector(model, quick=run.quick).preprocessing
    return ImageBatch.from_pixels(contents.to(run.device), sizes.to(run.device), preprocessing, padded=False)


@cache
def pixels_of(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return `benchmarks.setup.pixels`, read once."""
    return setup.pixels(count, size)


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Allow or forbid TF32 while the context lasts; PyTorch's default allows it in convolutions alone."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
