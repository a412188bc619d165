"""Sampling of deformable attention on a GPU: forward and backward pass, one Triton kernel each.

A program computes `ROWS` rows, each of a query and a head, with all channels of the head. The kernels read locations,
weights and the four cells around each location, and write the result; nothing is stored in between. Cells outside of a
map count as zeros. Sums are computed in the dtype of the locations. Import this module only where Triton is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
"""Rows of a program; with the usual 32 channels of a head these are 8 numbers for each of its 128 threads."""
COUNTS = ["num_rows", "num_queries", "num_cells"]
"""Arguments that vary between batches; a kernel is not compiled again for those that are multiples of 16."""


@triton.jit  # type: ignore[untyped-decorator]
def cell(
    base: tl.tensor,
    row_mask: tl.tensor,
    channel: tl.tensor,
    x: tl.tensor,
    y: tl.tensor,
    width: tl.tensor,
    height: tl.tensor,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """Return the offsets of the channels of the cells in column x and row y of a map, and which of them exist."""
    inside = row_mask & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = tl.where(inside, y * width + x, 0).to(tl.int64)
    offset = (base + index * (HEADS * WIDTH))[:, None] + channel[None, :]
    return offset, inside[:, None] & (channel < WIDTH)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def points_of(level: tl.tensor, POINTS: tl.constexpr, LEVELS: tl.constexpr) -> tl.tensor:
    """Return the number of points of a level; a loop over levels is not unrolled, which shortens the code."""
    count = 0
    for each in tl.static_range(LEVELS):
        count += tl.where(level == each, POINTS[each], 0)
    return count


@triton.jit  # type: ignore[untyped-decorator]
def load_point(
    locations: tl.tensor,
    weights: tl.tensor,
    at: tl.tensor,
    mask: tl.tensor,
    width: tl.tensor,
    height: tl.tensor,
) -> tl.tensor:
    """Return a location in cells, from the centre of the first one, and its weight."""
    x = tl.load(locations + 2 * at, mask=mask, other=0) * width - 0.5
    y = tl.load(locations + 2 * at + 1, mask=mask, other=0) * height - 0.5
    return x, y, tl.load(weights + at, mask=mask, other=0)


@triton.jit(do_not_specialize=COUNTS)  # type: ignore[untyped-decorator]
def forward_kernel(
    value: tl.tensor,
    sizes: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    output: tl.tensor,
    num_rows: tl.tensor,
    num_queries: tl.tensor,
    num_cells: tl.tensor,
    POINTS: tl.constexpr,
    LEVELS: tl.constexpr,
    TOTAL: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Write the weighted sums of the values at the locations."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel, row_mask = tl.arange(0, CHANNELS), row < num_rows
    base = (row // HEADS // num_queries * num_cells * HEADS + row % HEADS) * WIDTH
    total = tl.zeros((ROWS, CHANNELS), dtype=locations.dtype.element_ty)
    first = 0
    for level in range(LEVELS):
        width, height = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        count = points_of(level, POINTS, LEVELS)
        for point in range(first, first + count):
            at = row * TOTAL + point
            x, y, weight = load_point(locations, weights, at, row_mask, width, height)
            for corner in tl.static_range(4):
                column, line = tl.floor(x) + corner % 2, tl.floor(y) + corner // 2
                share = (1 - tl.abs(x - column)) * (1 - tl.abs(y - line)) * weight
                offset, mask = cell(base, row_mask, channel, column, line, width, height, HEADS, WIDTH)
                total += tl.load(value + offset, mask=mask, other=0) * share[:, None]
        first += count
        base += (width * height).to(tl.int64) * (HEADS * WIDTH)
    offset = row[:, None] * WIDTH + channel[None, :]
    tl.store(output + offset, total, mask=row_mask[:, None] & (channel < WIDTH)[None, :])


@triton.jit(do_not_specialize=COUNTS)  # type: ignore[untyped-decorator]
def backward_kernel(
    value: tl.tensor,
    sizes: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    gradient: tl.tensor,
    of_value: tl.tensor,
    of_locations: tl.tensor,
    of_weights: tl.tensor,
    num_rows: tl.tensor,
    num_queries: tl.tensor,
    num_cells: tl.tensor,
    POINTS: tl.constexpr,
    LEVELS: tl.constexpr,
    TOTAL: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Write the gradients of locations and weights, and add those of values, in no fixed order, to zeros."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel, row_mask = tl.arange(0, CHANNELS), row < num_rows
    base = (row // HEADS // num_queries * num_cells * HEADS + row % HEADS) * WIDTH
    offset = row[:, None] * WIDTH + channel[None, :]
    given = tl.load(gradient + offset, mask=row_mask[:, None] & (channel < WIDTH)[None, :], other=0)
    given = given.to(locations.dtype.element_ty)
    first = 0
    for level in range(LEVELS):
        width, height = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        count = points_of(level, POINTS, LEVELS)
        for point in range(first, first + count):
            at = row * TOTAL + point
            x, y, weight = load_point(locations, weights, at, row_mask, width, height)
            of_x, of_y, of_weight = x * 0, x * 0, x * 0
            for corner in tl.static_range(4):
                column, line = tl.floor(x) + corner % 2, tl.floor(y) + corner // 2
                share_x, share_y = 1 - tl.abs(x - column), 1 - tl.abs(y - line)
                offset, mask = cell(base, row_mask, channel, column, line, width, height, HEADS, WIDTH)
                product = tl.sum(tl.load(value + offset, mask=mask, other=0) * given, axis=1)
                of_weight += product * share_x * share_y
                of_x += product * share_y * (corner % 2 * 2 - 1)
                of_y += product * share_x * (corner // 2 * 2 - 1)
                tl.atomic_add(
                    of_value + offset, given * (share_x * share_y * weight)[:, None], mask=mask, sem="relaxed"
                )
            tl.store(of_weights + at, of_weight, mask=row_mask)
            tl.store(of_locations + 2 * at, of_x * weight * width, mask=row_mask)
            tl.store(of_locations + 2 * at + 1, of_y * weight * height, mask=row_mask)
        first += count
        base += (width * height).to(tl.int64) * (HEADS * WIDTH)


@torch.library.custom_op("querybox::deformable_sample", mutates_args=())
def deformable_sample(
    value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor, points: Sequence[int]
) -> Tensor:
    """Return the weighted sums of the values that are interpolated at the locations, [B, Q, heads, head_width].

    Args:
        value: The cells of all feature maps, [B, S, heads, head_width].
        sizes: (width, height) of each map in cells, [levels, 2].
        locations: x, y in 0-1 of the padded map, map by map, [B, Q, heads, K, 2]; float32 or float64.
        weights: Weight of each location, [B, Q, heads, K]; of the same dtype.
        points: Locations of each head in each map; K in total.
    """
    output = value.new_empty(*weights.shape[:3], value.shape[3])
    launch(forward_kernel, [value, sizes, locations, weights, output], points)
    return output


@torch.library.custom_op("querybox::deformable_sample_backward", mutates_args=())
def deformable_sample_backward(
    gradient: Tensor,
    value: Tensor,
    sizes: Tensor,
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, locations and weights."""
    of_value = torch.zeros_like(value, dtype=locations.dtype, memory_format=torch.contiguous_format)
    of_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    of_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    inputs = [value, sizes, locations, weights, gradient]
    launch(backward_kernel, [*inputs, of_value, of_locations, of_weights], points)
    return of_value.to(value.dtype), of_locations, of_weights


def launch(kernel: Any, tensors: Sequence[Tensor], points: Sequence[int]) -> None:
    """Run a kernel, whose first four tensors are those of `deformable_sample`, and the last ones are contiguous."""
    value, _, _, weights = tensors[:4]
    num_rows, head_width = weights.shape[:3].numel(), value.shape[3]
    if num_rows == 0:
        return
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(num_rows, ROWS),)](
            *(tensor.contiguous() for tensor in tensors),
            num_rows,
            weights.shape[1],
            value.shape[1],
            POINTS=tuple(points),
            LEVELS=len(points),
            TOTAL=sum(points),
            HEADS=value.shape[2],
            WIDTH=head_width,
            ROWS=ROWS,
            CHANNELS=triton.next_power_of_2(head_width),
        )


@deformable_sample.register_fake
def _(value: Tensor, _sizes: Tensor, _locations: Tensor, weights: Tensor, _points: Sequence[int]) -> Tensor:
    return value.new_empty(*weights.shape[:3], value.shape[3])


@deformable_sample_backward.register_fake
def _(
    _gradient: Tensor,
    value: Tensor,
    _sizes: Tensor,
    locations: Tensor,
    weights: Tensor,
    _points: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - PyTorch passes it
    """Save what the backward pass needs: the inputs."""
    *tensors, ctx.points = inputs
    ctx.save_for_backward(*tensors)


def gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the inputs of `deformable_sample`."""
    of_value, of_locations, of_weights = deformable_sample_backward(gradient, *ctx.saved_tensors, ctx.points)
    return of_value, None, of_locations, of_weights, None


deformable_sample.register_autograd(gradients, setup_context=save_inputs)
