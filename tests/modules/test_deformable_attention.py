"""Deformable attention against its definition, written as loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from querybox.fast.replacement import replace_leaves
from querybox.fast.training import LEAVES
from querybox.levels import Levels
from querybox.modules.deformable_attention import DeformableAttention, GridSample, NearestSample
from querybox.modules.encoder import cell_centres, levels_from_masks
from querybox.modules.neck import PyramidProjection

WIDTH, HEADS, POINTS = 12, 3, (3, 1)


def masks() -> list[Tensor]:
    """Two maps of two images; the second image is narrower and lower."""
    fine, coarse = torch.zeros(2, 5, 7, dtype=torch.bool), torch.zeros(2, 3, 4, dtype=torch.bool)
    fine[1, 4:], coarse[1, 2:] = True, True
    fine[1, :, 5:], coarse[1, :, 3:] = True, True
    return [fine, coarse]


@pytest.fixture
def levels() -> Levels:
    return levels_from_masks(masks())


@pytest.fixture
def attention() -> DeformableAttention:
    torch.manual_seed(0)
    attention = DeformableAttention(WIDTH, HEADS, POINTS).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def in_double(levels: Levels) -> Levels:
    return Levels(
        shapes=levels.shapes,
        sizes=levels.sizes.double(),
        valid_ratios=levels.valid_ratios.double(),
        padding_mask=levels.padding_mask,
    )


def bilinear(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Interpolate a map [h, w, channels] at one place in cells, whose middles are at 0.5, 1.5, ...; zero outside."""
    x, y = x - 0.5, y - 0.5
    height, width, channels = cells.shape
    result = cells.new_zeros(channels)
    left, top = math.floor(x.detach()), math.floor(y.detach())
    for column in (left, left + 1):
        for row in (top, top + 1):
            if 0 <= column < width and 0 <= row < height:
                result = result + cells[row, column] * (1 - (x - column).abs()) * (1 - (y - row).abs())
    return result


def discrete(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Take one cell of a map [h, w, channels], as RT-DETRv2 does."""
    height, width, _ = cells.shape
    x, y = x.detach(), y.detach()
    column = min(max(math.floor(x + 0.5), 0), width - 1)
    return cells[min(max(math.floor(y + 0.5), 0), height - 1), column]


def by_loops(
    attention: DeformableAttention,
    query: Tensor,
    reference: Tensor,
    tokens: Tensor,
    levels: Levels,
    take: Callable[[Tensor, Tensor, Tensor], Tensor] = bilinear,
) -> Tensor:
    assert levels.padding_mask is not None
    value = attention.value(tokens) * ~levels.padding_mask[..., None]
    answers = []
    for image in range(len(query)):
        for which in range(query.shape[1]):
            offset = attention.offset(query[image, which]).view(HEADS, sum(POINTS), 2)
            weight = attention.weight(query[image, which]).view(HEADS, sum(POINTS)).softmax(1)
            place = reference[image, which]
            mixed = []
            for head in range(HEADS):
                total = torch.zeros(WIDTH // HEADS, dtype=torch.float64)
                start, point = 0, 0
                for level, (h, w) in enumerate(levels.shapes):
                    cells = value[image, start : start + h * w].view(h, w, HEADS, -1)[:, :, head]
                    start += int(h * w)
                    size = torch.tensor([w, h], dtype=torch.float64)
                    columns, rows = (levels.valid_ratios[image, level] * size).round().int().tolist()
                    cells = cells[:rows, :columns]
                    for _ in range(POINTS[level]):
                        at = place[:2] * levels.valid_ratios[image, level] * size
                        if len(place) == 2:
                            at = at + offset[head, point]
                        else:
                            extent = place[2:] * levels.valid_ratios[image, level] * size
                            at = at + offset[head, point] * extent / POINTS[level] / 2
                        total = total + weight[head, point] * take(cells, *at)
                        point += 1
                mixed.append(total)
            answers.append(attention.output(torch.cat(mixed)))
    return torch.stack(answers).view(query.shape)


@pytest.mark.parametrize("form", ["plain", "in training"])
@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
def test_values_and_gradients_are_those_of_the_definition(
    attention: DeformableAttention, levels: Levels, numbers: int, form: str
) -> None:
    levels = in_double(levels)
    query = torch.randn(2, 6, WIDTH, dtype=torch.float64, requires_grad=True)
    reference = torch.rand(2, 6, numbers, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 47, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [query, reference, tokens, *attention.parameters()]
    if form == "in training":
        replace_leaves(attention, LEAVES)
        assert type(attention.sampling) is LEAVES[GridSample]
    ours = attention(query, reference, tokens, levels)
    theirs = by_loops(attention, query, reference, tokens, levels)
    assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    assert_close(
        torch.autograd.grad(ours, inputs, direction, retain_graph=True),
        torch.autograd.grad(theirs, inputs, direction),
    )


def test_discrete_sampling_takes_one_cell(attention: DeformableAttention, levels: Levels) -> None:
    levels = in_double(levels)
    attention.sampling = NearestSample()
    query, tokens = (
        torch.randn(2, count, WIDTH, dtype=torch.float64, requires_grad=True) for count in (6, 47)
    )
    reference = torch.rand(2, 6, 4, dtype=torch.float64) * 1.5 - 0.2  # some points are outside
    inputs = [query, tokens, attention.weight.weight, attention.get_parameter("value.weight")]
    ours = attention(query, reference, tokens, levels)
    theirs = by_loops(attention, query, reference, tokens, levels, discrete)
    assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    assert_close(
        torch.autograd.grad(ours, inputs, direction, retain_graph=True),
        torch.autograd.grad(theirs, inputs, direction),
    )
    nowhere = torch.full_like(reference, torch.nan)
    assert attention(query, nowhere, tokens, levels).isfinite().all()


class Rounding(TorchDispatchMode):
    """Round every float to bfloat16, as a runtime does that computes in it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        rounds = isinstance(result, Tensor) and result.dtype == torch.float32
        return result.bfloat16().float() if rounds else result


def test_discrete_sampling_takes_the_same_cells_in_16_bits() -> None:
    """Locations, sizes and values are exact in bfloat16, but not the numbers of the cells."""
    levels = levels_from_masks([torch.zeros(1, 128, 64, dtype=torch.bool)] * 2)
    value = torch.randint(256, (1, 2 * 128 * 64, 2)).float()
    locations = torch.stack([torch.arange(64) / 64, torch.arange(64) / 64], 1).expand(1, 1, 2, 64, 2)
    weights = torch.zeros(1, 1, 2, 64)
    weights[..., 63] = 1
    sampling = NearestSample()
    with Rounding():  # type: ignore[no-untyped-call]
        rounded = sampling(value, levels, locations, weights, (32, 32))
    assert rounded.flatten().tolist() == value[0, 128 * 64 + 126 * 64 + 63].tolist()


def test_discrete_sampling_does_not_depend_on_padding(attention: DeformableAttention, levels: Levels) -> None:
    """Beyond the border of an image are its last cells, also if others follow that pad it."""
    attention.float().sampling = NearestSample()
    query, tokens = torch.randn(2, 6, WIDTH), torch.randn(2, 47, WIDTH)
    reference = torch.rand(2, 6, 4) + 0.3
    alone = levels_from_masks([torch.zeros(1, *shape, dtype=torch.bool) for shape in ((4, 5), (2, 3))])
    assert levels.padding_mask is not None
    inside = tokens[1:, ~levels.padding_mask[1]]
    assert_close(
        attention(query, reference, tokens, levels)[1:], attention(query[1:], reference[1:], inside, alone)
    )


def test_padding_is_not_seen(attention: DeformableAttention, levels: Levels) -> None:
    levels = in_double(levels)
    query, reference = torch.randn(2, 6, WIDTH).double(), torch.rand(2, 6, 2).double()
    tokens = torch.randn(2, 47, WIDTH).double()
    assert levels.padding_mask is not None
    changed = torch.where(levels.padding_mask[..., None], 100.0, tokens)
    assert_close(
        attention(query, reference, changed, levels),
        attention(query, reference, tokens, levels),
        rtol=0,
        atol=0,
    )


def test_each_head_begins_in_a_direction_of_its_own() -> None:
    offsets = DeformableAttention(16, 4, (2, 1)).offset.bias.view(4, 3, 2)
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert_close(offsets[:, 0], wanted, rtol=0, atol=1e-6)
    assert_close(offsets[:, 1], 2 * wanted, rtol=0, atol=1e-6)
    assert_close(offsets[:, 2], wanted, rtol=0, atol=1e-6)  # the first point in the second map


def test_cell_centres_are_relative_to_the_unpadded_image(levels: Levels) -> None:
    centres = cell_centres(levels)
    assert centres.shape == (2, 47, 2)
    assert_close(centres[0, 0], torch.tensor([0.5 / 7, 0.5 / 5]))
    assert_close(centres[1, 0], torch.tensor([0.5 / 5, 0.5 / 4]))  # 5 x 4 of the 7 x 5 cells are image
    assert levels.padding_mask is not None
    inside = centres[~levels.padding_mask]
    assert inside.min() > 0
    assert inside.max() < 1


def test_coarser_maps_are_made_of_the_last() -> None:
    neck = PyramidProjection([8, 16], 32, levels=4)
    maps = neck([torch.randn(1, 8, 12, 20), torch.randn(1, 16, 6, 10)])
    assert [tuple(each.shape) for each in maps] == [
        (1, 32, 12, 20),
        (1, 32, 6, 10),
        (1, 32, 3, 5),
        (1, 32, 2, 3),
    ]
