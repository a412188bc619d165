"""References: how they move, where gradients stop, and that denoising queries tell the others nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_models import PUBLIC
from torch import Tensor, nn
from torch.testing import assert_close

from querybox import Detector, ImageBatch, Target
from querybox.boxes import inverse_sigmoid
from querybox.modules.decoder import DeformableDecoderLayer, ReferenceDecoder, apply_deltas
from querybox.modules.encoder import levels_from_masks
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.refinement import KeepReference, LookForwardTwice, Refine, Refinement
from querybox.structures import Memory, Queries

WIDTH = 32


def make_decoder(refinement: Refinement, layers: int = 3) -> ReferenceDecoder:
    torch.manual_seed(0)
    decoder = ReferenceDecoder(
        [DeformableDecoderLayer(WIDTH, 4, (2,), 64, 0.0) for _ in range(layers)],
        [SigmoidClassHead(WIDTH, 3) for _ in range(layers)],
        [DeltaHead(WIDTH) for _ in range(layers)],
        refinement=refinement,
        norm=nn.LayerNorm(WIDTH) if isinstance(refinement, LookForwardTwice) else nn.Identity(),
    )
    for parameter in decoder.box_heads.parameters():
        nn.init.normal_(parameter, std=0.1)
    return decoder


def make_inputs() -> tuple[Queries, Memory]:
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    queries = Queries(
        content=torch.randn(1, 5, WIDTH),
        position=torch.randn(1, 5, WIDTH),
        reference=(0.2 + 0.6 * torch.rand(1, 5, 4)).requires_grad_(),
    )
    tokens = torch.randn(1, 36, WIDTH)
    levels = levels_from_masks([mask])
    return queries, Memory(tokens=tokens, position=tokens, padding_mask=levels.padding_mask, levels=levels)


def reaches(value: Tensor, source: Tensor | nn.Module) -> bool:
    inputs = [source] if isinstance(source, Tensor) else list(source.parameters())
    found = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in found)


@pytest.mark.parametrize("refinement", [KeepReference(), Refine(), LookForwardTwice()])
def test_where_gradients_stop(refinement: Refinement) -> None:
    decoder = make_decoder(refinement)
    queries, memory = make_inputs()
    boxes = [layer.boxes for layer in decoder(queries, memory)]
    assert queries.reference is not None
    assert reaches(boxes[0], queries.reference)
    # A box has a gradient through the box before it, of one layer, only when looking forward twice.
    assert reaches(boxes[1], decoder.box_heads[0]) == isinstance(refinement, LookForwardTwice)
    assert not reaches(boxes[2], decoder.box_heads[0])


def test_kept_references_do_not_move() -> None:
    decoder = make_decoder(KeepReference())
    nn.init.zeros_(decoder.box_heads[2].get_submodule("4").weight)  # type: ignore[arg-type]
    nn.init.zeros_(decoder.box_heads[2].get_submodule("4").bias)  # type: ignore[arg-type]
    queries, memory = make_inputs()
    assert queries.reference is not None
    assert_close(decoder(queries, memory)[2].boxes, queries.reference)


def test_refined_boxes_are_measured_from_the_layer_before() -> None:
    decoder = make_decoder(Refine(), layers=2)
    nn.init.zeros_(decoder.box_heads[1].get_submodule("4").weight)  # type: ignore[arg-type]
    nn.init.zeros_(decoder.box_heads[1].get_submodule("4").bias)  # type: ignore[arg-type]
    first, second = decoder(*make_inputs())
    assert_close(second.boxes, first.boxes)


def test_points_move_their_centre_alone() -> None:
    delta = torch.randn(1, 3, 4)
    boxes = apply_deltas(torch.full((1, 3, 2), 0.3), delta)
    assert_close(boxes[..., 2:], delta[..., 2:].sigmoid())
    assert_close(inverse_sigmoid(boxes[..., :2]), delta[..., :2] + inverse_sigmoid(torch.tensor(0.3)))


def small_dino(*, distinct: bool = False) -> Detector:
    settings = {**PUBLIC, "queries": 12, "denoising": 6, "distinct": distinct}
    return Detector.from_recipe("dino_r50", num_classes=3, **settings).eval()


def image_batch() -> tuple[ImageBatch, list[Target]]:
    images = torch.randn(2, 3, 64, 96)
    padding_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    batch = ImageBatch(images=images, padding_mask=padding_mask, sizes=torch.tensor([[64, 96]] * 2))
    boxes = [0.3 + 0.2 * torch.rand(count, 4) for count in (3, 1)]
    return batch, [Target(boxes=each, labels=torch.randint(3, (len(each),))) for each in boxes]


@pytest.mark.parametrize("distinct", [False, True])
def test_denoising_queries_tell_the_matched_ones_nothing(distinct: bool) -> None:
    torch.manual_seed(0)
    detector = small_dino(distinct=distinct)
    batch, targets = image_batch()
    with torch.no_grad():
        alone, together = detector(batch), detector(batch, targets)
    assert len(together.denoising) == 2
    assert together.denoising[0].logits.shape == (2, 12, 3)  # two groups of three objects, two queries each
    for one, other in zip(alone.layers, together.layers, strict=True):
        assert_close(one.logits, other.logits, rtol=0, atol=0)
        assert_close(one.boxes, other.boxes, rtol=0, atol=0)


@torch.no_grad()
def test_distinct_queries_are_told_nothing_by_those_that_rank_after_them() -> None:
    torch.manual_seed(0)
    batch, _ = image_batch()
    for distinct in (True, False):
        detector = small_dino(distinct=distinct)
        before = detector(batch).layers[-1].logits
        detector.queries.get_parameter("content")[8:] += torch.randn(4, 32)
        after = detector(batch).layers[-1].logits
        assert torch.equal(before[:, :8], after[:, :8]) == distinct
        assert not torch.equal(before[:, 8:], after[:, 8:])


def test_every_part_of_dino_is_trained() -> None:
    torch.manual_seed(0)
    detector = small_dino()
    batch, targets = image_batch()
    assert detector.recipe is not None
    losses = detector.recipe.criterion()(detector(batch, targets), targets)
    torch.stack(list(losses.values())).sum().backward()
    idle = {
        name
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    }
    assert idle == set()


def test_references_are_the_best_proposals() -> None:
    torch.manual_seed(0)
    detector = small_dino()
    batch, _ = image_batch()
    memory = detector.encoder(detector.neck(detector.backbone(batch.images)), batch.padding_mask)
    _, logits, _ = detector.queries.proposals(memory)  # type: ignore[operator]
    queries = detector.queries(memory)
    scores = logits.amax(-1)
    chosen = queries.proposals.logits.amax(-1)
    assert_close(chosen, scores.sort(descending=True).values[:, :12])
    assert not queries.reference.requires_grad
