"""The detector as it is trained computes what the plain one does, with the same parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from batch_norms import randomize_batch_norms
from tiny_models import TINY
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from querybox.detector import Detector
from querybox.fast.depthwise import depthwise, is_large_depthwise
from querybox.fast.kernels import (
    DotProductAttention,
    ReLUDropout,
    ShortSoftmax,
    WeightedRows,
    drop,
    keep_mask,
    linear,
)
from querybox.fast.replacement import copy_modules, replace_leaves
from querybox.fast.training import LEAVES, FastLinear, FoldedConv2d, fold_batch_norms, for_training
from querybox.losses.criterion import Criterion
from querybox.modules.backbone import Backbone
from querybox.modules.heads import ClassHead
from querybox.structures import ImageBatch, Target
from querybox.training.optim import build_optimizer
from querybox.training.settings import TrainSettings


def detector(backbone: str = "test_resnet", *, recipe: str = "detr_r50", **settings: Any) -> Detector:
    torch.manual_seed(0)
    found = Detector.from_recipe(
        recipe, num_classes=3, **{**TINY, "backbone": backbone, "dropout": 0.0, **settings}
    )
    assert isinstance(found.backbone, Backbone)
    randomize_batch_norms(found.backbone, torch.Generator().manual_seed(0))
    return found.train()


@pytest.fixture
def batch() -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch.from_images(
        [
            torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
            for size in ((64, 96), (96, 64))
        ]
    )


TARGETS = [
    Target(boxes=torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.5, 0.3, 0.3]]), labels=torch.tensor([0, 2])),
    Target(boxes=torch.tensor([[0.5, 0.5, 0.4, 0.6]]), labels=torch.tensor([1])),
]


def with_masks(targets: list[Target], batch: ImageBatch) -> list[Target]:
    return [
        replace(target, masks=torch.rand(len(target.labels), *size) > 0.5)
        for target, size in zip(targets, batch.sizes.tolist(), strict=True)
    ]


def folded_copy(backbone: Backbone) -> Backbone:
    folded = copy_modules(backbone)
    fold_batch_norms(folded)
    return folded


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "test_byobnet",
        "tf_mobilenetv3_small_minimal_100",
        "resnet18",
        "resnet10t",
        "regnety_002",
        "test_convnext",
    ],
)
def test_folded_backbones_equal_plain_ones(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, frozen_stride=4).double().train()
    randomize_batch_norms(backbone)
    folded = folded_copy(backbone)
    has_norms = any(True for _ in backbone.batch_norms())
    assert any(isinstance(module, FoldedConv2d) for module in folded.modules()) == has_norms
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    (want,), (got,) = backbone(images), folded(images)
    assert_close(got, want, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(want)
    assert_close(
        gradients(backbone, (got * weight).sum()),
        gradients(backbone, (want * weight).sum()),
        rtol=1e-8,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_first": True},
        {"masks": True},
        {"backbone": "test_efficientnet"},
        {"recipe": "deformable_detr_r50", "levels": 3, "points": 2},
        {"recipe": "dino_r50", "levels": 3, "points": 2, "distinct": True},
        {"recipe": "rtdetr_r50", "encoder_width": 16},
        {"recipe": "rtdetr_r18", "backbone": "resnet18d", "encoder_width": 16},
        {"recipe": "rtdetrv2_s", "backbone": "resnet18d", "encoder_width": 16, "points": (3, 1, 2)},
        {"recipe": "dfine_s", "backbone": "hgnetv2_b0", "encoder_width": 16},
    ],
)
def test_the_whole_detector_equals_the_plain_one(settings: dict[str, Any], batch: ImageBatch) -> None:
    plain = detector(**settings)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            # At first points lie on the very middles of cells, where there are two gradients.
            if ".offset." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert plain.recipe is not None
    criterion = plain.recipe.criterion()
    fast = for_training(plain)
    targets = TARGETS if plain.mask_head is None else with_masks(TARGETS, batch)
    results = []
    for model in (plain, fast):
        torch.manual_seed(0)  # masks are compared at random points
        losses = criterion(model(batch), targets)
        results.append((losses, gradients(plain, torch.stack(list(losses.values())).sum())))
    (losses, gradient), (fast_losses, fast_gradient) = results
    assert_close(fast_losses, losses, rtol=1e-5, atol=1e-6)
    assert_close(fast_gradient, gradient, rtol=1e-3, atol=1e-4)


def test_the_parameters_are_the_plain_detectors_own() -> None:
    plain = detector()
    before = list(plain.state_dict())
    fast = for_training(plain)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in plain.parameters()}
    assert {id(b) for b in fast.buffers()} == {id(b) for b in plain.buffers()}
    assert list(plain.state_dict()) == before
    assert not any(isinstance(module, FoldedConv2d) for module in plain.modules())


def saved_by(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return what a forward pass keeps for the backward pass."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images)
    return saved


def test_frozen_parts_keep_nothing_and_get_no_gradient(batch: ImageBatch) -> None:
    frozen = Backbone("resnet18", frozen_stride=32).train()
    assert saved_by(folded_copy(frozen), batch.images) == []
    plain = detector("resnet18")
    losses = Criterion()(for_training(plain)(batch), TARGETS)
    with_gradient = gradients(plain, torch.stack(list(losses.values())).sum()).keys()
    assert with_gradient == {name for name, p in plain.named_parameters() if p.requires_grad}


def test_a_folded_backbone_keeps_less_than_a_plain_one(batch: ImageBatch) -> None:
    backbone = Backbone("resnet18").train()

    def size(model: nn.Module) -> int:
        maps = {t.data_ptr(): t.nbytes for t in saved_by(model, batch.images) if t.ndim == 4 and len(t) == 2}
        return sum(maps.values())

    assert size(folded_copy(backbone)) < 0.7 * size(backbone)


def test_fifty_steps_stay_with_the_plain_float32_path(batch: ImageBatch) -> None:
    curves = []
    for fast, autocast in ((False, False), (True, False), (True, True)):
        plain = detector()
        model = for_training(plain) if fast else plain
        trained = [p for p in plain.parameters() if p.requires_grad]
        optimizer = build_optimizer(plain, TrainSettings())
        curve = []
        for _ in range(50):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = torch.stack(list(Criterion()(model(batch), TARGETS).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 0.1)
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    plain_curve, fast_curve, rounded_curve = curves
    assert plain_curve[-1] < 0.9 * plain_curve[0]
    assert sum(fast_curve) == pytest.approx(sum(plain_curve), rel=1e-4)
    assert fast_curve == pytest.approx(plain_curve, rel=1e-3)
    # In bfloat16 a match that rounding decides otherwise moves single steps of so small a model by more.
    assert sum(rounded_curve) == pytest.approx(sum(plain_curve), rel=0.01)
    assert rounded_curve == pytest.approx(plain_curve, rel=0.03)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_keeps_as_much_as_asked(dropout: float) -> None:
    torch.manual_seed(0)
    kept = keep_mask(torch.Size([1001, 999]), dropout).double()
    assert float(kept.mean()) == pytest.approx(1 - dropout, abs=2e-3)
    assert float(torch.corrcoef(torch.stack([kept[:, 1:].flatten(), kept[:, :-1].flatten()]))[0, 1]) < 5e-3
    x = torch.ones(1000, 1000)
    assert float(drop(x, dropout).mean()) == pytest.approx(1, abs=5e-3)
    assert drop(x, 0.0) is x


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_those_of_what_is_computed(dropout: float) -> None:
    torch.manual_seed(0)
    blocked = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]

    def attend(*tokens: Tensor) -> Tensor:
        torch.manual_seed(1)
        return DotProductAttention.apply(*tokens, blocked, dropout)

    def activate(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return ReLUDropout.apply(x, dropout)

    assert gradcheck(attend, (doubles(2, 2, 3, 4), doubles(2, 2, 5, 4), doubles(2, 2, 5, 4)))
    assert gradcheck(activate, (doubles(4, 8),))
    assert gradcheck(ShortSoftmax.apply, (doubles(2, 3, 5),))


def test_weighted_rows_are_sums_of_rows() -> None:
    """Also of the same row twice, of a table with rows that nobody asks for, and of one image."""
    torch.manual_seed(0)
    rows = torch.randint(6, (2, 4, 3), dtype=torch.int32)
    rows[:, 0] = 2
    table, shares = doubles(2, 8, 5), doubles(2, 4, 3)
    want = torch.stack(
        [(t[r.long()] * s[..., None]).sum(1) for r, t, s in zip(rows, table, shares, strict=True)]
    )
    assert_close(WeightedRows.apply(rows, table, shares), want)
    for images in (slice(0, 2), slice(1, 2)):
        assert gradcheck(partial(WeightedRows.apply, rows[images]), (table[images], shares[images]))


def test_who_looks_nowhere_sees_nothing_that_is_a_number() -> None:
    """A loss of NaN is told with its images, which an index outside the table would prevent."""
    plain = detector(recipe="deformable_detr_r50", levels=3, points=2)
    with torch.no_grad():
        next(p for name, p in plain.named_parameters() if name.endswith("offset.bias")).fill_(torch.nan)
    images = ImageBatch.from_images([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    assert for_training(plain)(images).layers[-1].boxes.isnan().all()


def test_a_short_softmax_equals_pytorchs() -> None:
    """Also of logits so large that their exponentials overflow."""
    x = torch.tensor([[1e4, 1e4 - 1, -1e4], [0.0, -1.0, 2.0]])
    assert_close(ShortSoftmax.apply(x), x.softmax(-1))


def test_attention_equals_pytorchs() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    blocked = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    want = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=~blocked)
    assert_close(DotProductAttention.apply(q, k, v, blocked, 0.0), want)
    torch.manual_seed(0)
    mean = sum(DotProductAttention.apply(q, k, v, blocked, 0.3) for _ in range(4000)) / 4000
    assert_close(mean, want, rtol=0, atol=0.06)


@pytest.mark.parametrize("rows", [(2, 3), (37,), (0, 3)])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
def test_linear_equals_pytorchs(rows: tuple[int, ...], frozen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = torch.randn(*rows, 5), torch.randn(4, 5), torch.randn(4)
    results = []
    for function in (linear, nn.functional.linear):
        copies = [each.clone().requires_grad_(number not in frozen) for number, each in enumerate(tensors)]
        output = function(*copies)
        output.square().sum().backward()
        results.append((output, [each.grad for each in copies]))
    assert_close(*results)
    x, weight, bias = tensors
    assert_close(linear(x, weight, None), nn.functional.linear(x, weight))
    assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64


@pytest.mark.parametrize("kernel", [4, 5, (5, 7)])
@pytest.mark.parametrize("stride", [1, (2, 3)])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
def test_depthwise_convolutions_equal_pytorchs(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], frozen: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, kernel, stride, padding=(2, 1), groups=6).double()
    assert conv.bias is not None
    tensors = torch.randn(2, 6, 11, 14).double(), conv.weight.detach(), conv.bias.detach()
    results = []
    for function in (
        partial(depthwise, conv),
        partial(nn.functional.conv2d, stride=conv.stride, padding=(2, 1), groups=6),
    ):
        copies = [each.clone().requires_grad_(number not in frozen) for number, each in enumerate(tensors)]
        output = function(*copies)
        output.square().sum().backward()
        results.append((output, [each.grad for each in copies]))
    assert_close(*results)


@pytest.mark.parametrize(("instructions", "faster"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_large_depthwise_convolutions_are_told(
    monkeypatch: pytest.MonkeyPatch, instructions: str, *, faster: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert is_large_depthwise(nn.Conv2d(6, 6, 5, groups=6)) == faster
    for conv in (
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Conv2d(6, 6, 5, groups=3),
        nn.Conv2d(6, 12, 5, groups=6),
        nn.Conv2d(6, 6, 5, groups=6, dilation=2),
        nn.Conv2d(6, 6, 5, groups=6, padding="same"),
    ):
        assert not is_large_depthwise(conv)


@pytest.mark.parametrize(("instructions", "faster"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_linear_layers_are_onednns_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, instructions: str, *, faster: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    fast = for_training(detector(masks=True))
    assert fast.mask_head is not None
    for part, plain in ((fast.decoder, {nn.Linear, ClassHead}), (fast.mask_head, {nn.Linear})):
        kinds = {type(module) for module in part.modules() if isinstance(module, nn.Linear)}
        assert kinds == ({FastLinear} if faster else plain)


@pytest.mark.parametrize(("instructions", "faster"), [("AVX512", True), ("AVX2", False)])
def test_convolutions_are_onednns_with_one_thread_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, batch: ImageBatch, instructions: str, *, faster: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert torch.get_num_threads() == 1
    plain = detector("test_efficientnet")
    fast = for_training(plain)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fast(batch).layers[-1].boxes.sum().backward()
    by_mkl = [event.key for event in profile.key_averages() if "_slow_conv2d" in event.key]
    assert (by_mkl == []) == faster
    pointwise = [
        each for each in plain.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (1, 1)
    ]
    assert {each.dilation for each in pointwise} == {(1, 1)}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
def test_gradients_of_norms_are_channels_last(norm: nn.Module) -> None:
    replace_leaves(norm, LEAVES)
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    maps = norm(x)
    gradients: list[Tensor] = []
    maps.register_hook(gradients.append)
    torch.cat([maps, torch.randn_like(maps)], 1).square().sum().backward()
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
    assert_close(gradients[0], 2 * maps.detach())


def test_an_optimised_copy_leaves_what_is_trained_alone() -> None:
    plain = detector(
        "test_efficientnet"
    )  # its squeeze-and-excitation has convolutions with biases of their own
    before = {name: p.requires_grad for name, p in plain.named_parameters()}
    plain.optimize(precision="bf16")
    assert {name: p.requires_grad for name, p in plain.named_parameters()} == before
    assert all(p.dtype == torch.float32 for p in plain.parameters())
