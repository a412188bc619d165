"""Checks of the Triton kernels; run by Triton's interpreter, in a process of its own, and on a GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.fast.sampling import TritonSample
from querybox.fast.triton_sampling import deformable_sample
from querybox.levels import Levels, Shapes
from querybox.modules.deformable_attention import sample


def inputs(
    shapes: Shapes, points: tuple[int, ...], *, heads: int, head_width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, sizes, locations inside, at the middle and the edge of cells, outside and far away, weights."""
    torch.manual_seed(0)
    cells = sum(int(height * width) for height, width in shapes)
    value = torch.randn(2, cells, heads, head_width, dtype=torch.float64)
    locations = 3 * torch.rand(2, QUERIES, heads, sum(points), 2, dtype=torch.float64) - 1
    locations[:, :3] = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)[:, None, None, None]
    locations[:, 3:5] *= 1e4
    weights = torch.rand(2, QUERIES, heads, sum(points), dtype=torch.float64)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float32)
    wide = torch.promote_types(dtype, torch.float32)
    return (
        value.to(device, dtype),
        sizes.to(device),
        locations.to(device, wide),
        weights.to(device, wide),
    )


SHAPES: Shapes = ((5, 3), (1, 1), (2, 7))
"""With a map of a single cell."""
POINTS = (3, 1, 2)
QUERIES = 9
"""So many that a second program of the kernels has rows, and not all of them."""
COMPILING = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def check_values(device: str) -> None:
    """Values are those of the definition; in bf16 within the rounding of the result."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
        for heads, head_width in ((3, 8), (2, 5)):
            value, sizes, locations, weights = inputs(
                SHAPES, POINTS, heads=heads, head_width=head_width, dtype=dtype, device=device
            )
            levels = Levels(shapes=SHAPES, sizes=sizes, valid_ratios=torch.ones(2, 3, 2), padding_mask=None)
            got = TritonSample()(value.flatten(2), levels, locations, weights, POINTS)
            expected = sample(value.to(locations.dtype), SHAPES, locations, weights, POINTS)
            assert got.dtype == dtype
            assert_close(got.to(expected), expected, rtol=tolerance, atol=tolerance)


def check_gradients(device: str) -> None:
    """Gradients of values, locations and weights are those of the definition, in float64 to the last digits."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        value, sizes, locations, weights = inputs(
            SHAPES, POINTS, heads=3, head_width=8, dtype=dtype, device=device
        )
        locations = torch.cat([locations[:, :0], locations[:, 3:]], 1)  # on edges left and right differ
        weights = weights[:, 3:]
        given = [each.requires_grad_() for each in (value, locations.contiguous(), weights.contiguous())]
        value, locations, weights = given
        expected = sample(value.to(locations.dtype), SHAPES, locations, weights, POINTS)
        got = deformable_sample(value, sizes.to(locations.dtype), locations, weights, POINTS).flatten(2)
        direction = torch.randn_like(got)
        ours = torch.autograd.grad(got, given, direction)
        theirs = torch.autograd.grad(expected, given, direction.to(expected))
        for own, other in zip(ours, theirs, strict=True):
            assert own.dtype == other.dtype
            assert_close(own, other, rtol=tolerance, atol=tolerance)
        if dtype == torch.float64:
            assert_close(got, expected, rtol=tolerance, atol=tolerance)


def check_nan(device: str) -> None:
    """A location that is NaN gives NaN, and reads no memory outside of the maps."""
    value, sizes, locations, weights = inputs(
        SHAPES, POINTS, heads=3, head_width=8, dtype=torch.float32, device=device
    )
    locations[1, 2, 1, 3, 0] = torch.nan
    got = deformable_sample(value, sizes, locations, weights, POINTS)
    assert got[1, 2, 1].isnan().all()
    assert int(got.isnan().sum()) == 8


def check_registration(device: str) -> None:
    """The operator has what `torch.compile` and autograd need."""
    value, sizes, locations, weights = inputs(
        SHAPES, POINTS, heads=3, head_width=8, dtype=torch.float32, device=device
    )
    given = [each.requires_grad_() for each in (value, locations, weights)]
    arguments: Any = (given[0], sizes, given[1], given[2], POINTS)
    torch.library.opcheck(deformable_sample, arguments, test_utils=COMPILING)


CHECKS: tuple[Callable[[str], None], ...] = (check_values, check_gradients, check_nan, check_registration)

if __name__ == "__main__":
    for check in CHECKS:
        check("cpu")
    sys.stdout.write(f"{len(CHECKS)} checks passed\n")
