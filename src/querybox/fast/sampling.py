"""Deformable attention's sampling as a weighted sum of rows of a table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from querybox.modules.deformable_attention import GridSample
from querybox.structures import Levels, Shapes


class TableSample(GridSample):
    """Samples in float32, whatever the type of the values."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        places: Float[Tensor, "B Q heads L P 2"],
        weight: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over a query's places."""
        return sample(value.float(), levels, places, weight.float()).to(value.dtype)


def sample(
    value: Float[Tensor, "B S D"],
    levels: Levels,
    places: Float[Tensor, "B Q heads L P 2"],
    weight: Float[Tensor, "B Q heads L P"],
) -> Float[Tensor, "B Q D"]:
    """Compute what `querybox.modules.deformable_attention.sample` does, as one weighted sum of table rows."""
    table = bordered(value, levels.shapes, heads=weight.shape[2])
    rows, shares = corners(places, weight, levels, apart=table.shape[1])
    mixed = F.embedding_bag(
        rows.flatten(0, 2), table.flatten(0, 1), per_sample_weights=shares.flatten(0, 2), mode="sum"
    )  # [B Q heads, D / heads]
    return mixed.view(*weight.shape[:2], -1)


def bordered(value: Float[Tensor, "B S D"], shapes: Shapes, heads: int) -> Float[Tensor, "B N head_width"]:
    """Return a table an image, in which a cell of a head is a row.

    Maps get a border of zeros, so that nothing has to be done for points outside.
    """
    maps = value.split([h * w for h, w in shapes], dim=1)
    padded = [
        F.pad(cells.unflatten(1, shape), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for cells, shape in zip(maps, shapes, strict=True)
    ]
    return torch.cat(padded, 1).unflatten(2, (heads, -1)).flatten(1, 2)


def corners(
    places: Float[Tensor, "B Q heads L P 2"],
    weight: Float[Tensor, "B Q heads L P"],
    levels: Levels,
    *,
    apart: int,
) -> tuple[Int32[Tensor, "B Q heads K"], Float[Tensor, "B Q heads K"]]:
    """Return the table's rows of the four cells around each place, and how much each of them counts; K = 4 L P.

    Args:
        places: x, y; 0-1 of the padded map.
        weight: How much each place counts.
        levels: How the tokens make up the maps.
        apart: Rows from one image's table to the next one's; 0 where rows are counted from the image's own first.
    """
    batch, _, heads, _, points = weight.shape
    sizes = levels.sizes  # [L, 2]
    pitch = sizes[:, 0] + 2  # rows of a map are so many cells apart
    counts = (sizes + 2).prod(1)
    start = counts.cumsum(0) - counts + pitch + 1  # of each map's first cell in the table
    # One number a point, or two, side by side in memory: short axes are slow to broadcast along.
    pitch, start = pitch.repeat_interleave(points), start.repeat_interleave(points)  # [L P]
    sizes = sizes.repeat_interleave(points, 0).flatten()  # [L P 2]

    cells = (places.flatten(3) * sizes - 0.5).clamp(-torch.ones_like(sizes), sizes)  # [B, Q, heads, L P 2]
    # Whoever looks nowhere (NaN) is to see NaN, but in a row that there is.
    first = cells.detach().floor().minimum(sizes - 1).nan_to_num(nan=-1)
    left, top = first.unflatten(3, (-1, 2)).unbind(-1)  # [B, Q, heads, L P]
    right_share, low_share = (cells - first).unflatten(3, (-1, 2)).unbind(-1)
    image = torch.arange(batch, dtype=torch.int32, device=weight.device)[:, None, None, None]
    head = torch.arange(heads, dtype=torch.int32, device=weight.device)[:, None]
    row = (top * pitch + left + start).int() * heads + (image * apart + head)
    below = (pitch * heads).int()
    right = torch.full_like(below, heads)
    corner = torch.stack([torch.zeros_like(below), right, below, below + right])  # [4, L P]
    rows = (row[..., None, :] + corner).flatten(3)  # [B, Q, heads, 4 L P]

    weight = weight.flatten(3)
    low = weight * low_share
    high = weight - low
    high_right, low_right = high * right_share, low * right_share
    return rows, torch.cat([high - high_right, high_right, low - low_right, low_right], -1)
