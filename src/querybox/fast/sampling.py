"""Sampling of deformable attention as weighted sums of table rows, or with Triton on a GPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor, nn

from querybox.fast.kernels import ShortSoftmax
from querybox.levels import Levels, Shapes
from querybox.modules.deformable_attention import GridSample, repeat_by_level
from querybox.structures import at_least_float32


class FastSoftmax(nn.Softmax):
    """Softmax along the last axis, in float32 at least."""

    @staticmethod
    def fits(softmax: nn.Softmax) -> bool:
        """Return whether the softmax is along the last axis."""
        return softmax.dim == -1

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return weights that sum to 1."""
        weights: Tensor = ShortSoftmax.apply(at_least_float32(x))
        return weights


class TableSample(GridSample):
    """Sampling by table lookup, in float32 whatever the dtype of the values."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads K 2"],
        attention_weights: Float[Tensor, "B Q heads K"],
        points: tuple[int, ...],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over the sampling locations; see `GridSample.forward`."""
        weights = attention_weights.float()
        return sample(value.float(), levels, sampling_locations, weights, points).to(value.dtype)


class TritonSample(GridSample):
    """Sampling by one Triton kernel, with sums in float32 or more; only where `runs_triton`."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads K 2"],
        attention_weights: Float[Tensor, "B Q heads K"],
        points: tuple[int, ...],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over the sampling locations, in the dtype of `value`; see `GridSample.forward`."""
        from querybox.fast.triton_sampling import deformable_sample

        cells = value.unflatten(2, (attention_weights.shape[2], -1))
        locations = at_least_float32(sampling_locations)
        weights = attention_weights.to(locations.dtype)
        output: Tensor = deformable_sample(cells, levels.sizes, locations, weights, points)
        return output.flatten(2)


@cache
def runs_triton(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device, by running one.

    They need Triton, a GPU that it supports, and a C compiler.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        from querybox.fast.triton_sampling import deformable_sample

        value = torch.zeros(1, 1, 1, 32, device=device)
        locations, weights = value.new_zeros(1, 1, 1, 1, 2), value.new_zeros(1, 1, 1, 1)
        deformable_sample(value, value.new_ones(1, 2), locations, weights, (1,))
    except Exception:  # noqa: BLE001 - whatever is missing, there is another way
        return False
    return True


def sample(
    value: Float[Tensor, "B S D"],
    levels: Levels,
    sampling_locations: Float[Tensor, "B Q heads K 2"],
    attention_weights: Float[Tensor, "B Q heads K"],
    points: tuple[int, ...],
) -> Float[Tensor, "B Q D"]:
    """Compute `querybox.modules.deformable_attention.sample` as weighted sums of table rows."""
    table = value_table(value, levels.shapes, heads=attention_weights.shape[2])
    rows, weights = corners(
        sampling_locations, attention_weights, levels, points, image_stride=table.shape[1]
    )
    output = F.embedding_bag(
        rows.flatten(0, 2), table.flatten(0, 1), per_sample_weights=weights.flatten(0, 2), mode="sum"
    )
    return output.view(*attention_weights.shape[:2], -1)  # from [B Q heads, D / heads]


def value_table(value: Float[Tensor, "B S D"], shapes: Shapes, heads: int) -> Float[Tensor, "B N head_width"]:
    """Return a table per image with one row per cell and head.

    Maps are padded with a border of zeros, so that points outside need no special treatment.
    """
    maps = value.split([h * w for h, w in shapes], dim=1)
    padded = [
        F.pad(cells.unflatten(1, shape), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for cells, shape in zip(maps, shapes, strict=True)
    ]
    return torch.cat(padded, 1).unflatten(2, (heads, -1)).flatten(1, 2)


def corners(
    sampling_locations: Float[Tensor, "B Q heads K 2"],
    attention_weights: Float[Tensor, "B Q heads K"],
    levels: Levels,
    points: tuple[int, ...],
    *,
    image_stride: int,
) -> tuple[Int32[Tensor, "B Q heads _"], Float[Tensor, "B Q heads _"]]:
    """Return the table rows of the four cells around each sampling location, and their weights, 4 K each.

    Args:
        sampling_locations: Sampling locations: x, y in 0-1 of the padded map.
        attention_weights: Attention weights.
        levels: The feature maps.
        points: Sampling points of each head in each map; K in total.
        image_stride: Number of rows between the tables of consecutive images; 0 to count rows separately for each.
    """
    batch, _, heads, _ = attention_weights.shape
    sizes = levels.sizes  # [levels, 2]
    pitch = sizes[:, 0] + 2  # number of cells in a row of the padded map
    counts = (sizes + 2).prod(1)
    start = counts.cumsum(0) - counts + pitch + 1  # index of each map's first cell in the table
    by_point = repeat_by_level(torch.stack([*sizes.unbind(1), pitch, start], 1), points, 0)  # [K, 4]
    pitch, start = by_point[:, 2], by_point[:, 3]  # [K]
    # Points and coordinates are one axis, because broadcasting along short axes is slow.
    sizes = by_point[:, :2].flatten()  # [K 2]

    cells = sampling_locations.flatten(3) * sizes - 0.5  # [B, Q, heads, K 2]
    cells = cells.clamp(-torch.ones_like(sizes), sizes)
    # NaN locations give NaN weights, but need valid rows.
    first = cells.detach().floor().minimum(sizes - 1).nan_to_num(nan=-1)
    left, top = first.unflatten(3, (-1, 2)).unbind(-1)  # [B, Q, heads, K]
    right_weight, lower_weight = (cells - first).unflatten(3, (-1, 2)).unbind(-1)
    image = torch.arange(batch, dtype=torch.int32, device=attention_weights.device)[:, None, None, None]
    head = torch.arange(heads, dtype=torch.int32, device=attention_weights.device)[:, None]
    row = (top * pitch + left + start).int() * heads + (image * image_stride + head)
    below = (pitch * heads).int()
    right = torch.full_like(below, heads)
    corner = torch.stack([torch.zeros_like(below), right, below, below + right])  # [4, K]
    rows = (row[..., None, :] + corner).flatten(3)  # [B, Q, heads, 4 K]

    lower = attention_weights * lower_weight
    upper = attention_weights - lower
    upper_right, lower_right = upper * right_weight, lower * right_weight
    return rows, torch.cat([upper - upper_right, upper_right, lower - lower_right, lower_right], -1)
