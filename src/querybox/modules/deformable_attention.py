"""Multi-scale deformable attention: each query attends to a few learned points of each feature map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querybox.levels import Levels, Shapes
from querybox.modules.blocks import zero_linear
from querybox.structures import at_least_float32


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention of Deformable DETR (Zhu et al. 2020, section 4.1, equation 3).

    With `NearestSample`, which has no gradients for it, `offset` is frozen.

    Attributes:
        sampling_layers: Names of the layers that predict where is sampled, which may have their own learning rate.
    """

    sampling_layers: ClassVar[tuple[str, ...]] = ("offset",)

    def __init__(
        self,
        width: int,
        heads: int,
        points: tuple[int, ...],
        *,
        projection: type[nn.Module] = nn.Linear,
        sampling: Callable[[], nn.Module] | None = None,
    ) -> None:
        """Create the projections. Initially, each head samples in a different direction.

        Args:
            width: Features of a token, D.
            heads: Attention heads, each with its own sampling points.
            points: Sampling points of each head in each map; K in total.
            projection: Projects the values and the output: `torch.nn.Linear` or `torch.nn.Identity`.
            sampling: Makes the module that samples values; by default `GridSample`.
        """
        super().__init__()
        self.heads, self.points = heads, points
        self.offset = nn.Linear(width, heads * sum(points) * 2)
        self.weight = zero_linear(width, heads * sum(points))
        self.value = projection(width, width)
        self.output = projection(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.sampling = (sampling or GridSample)()
        angle = 2 * math.pi * torch.arange(heads) / heads
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)  # [heads, 2]
        direction /= direction.abs().amax(1, keepdim=True)
        # The p-th point of a head in a map is p steps away.
        distance = torch.cat([torch.arange(1, count + 1) for count in points])[:, None]  # [K, 1]
        offsets = direction[:, None] * distance  # [heads, K, 2]
        nn.init.zeros_(self.offset.weight)
        self.offset.bias = nn.Parameter(offsets.flatten())
        self.offset.requires_grad_(not isinstance(self.sampling, NearestSample))
        for each in (self.value, self.output):
            if isinstance(each, nn.Linear):
                nn.init.xavier_uniform_(each.weight)
                nn.init.zeros_(each.bias)

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q R"],
        tokens: Float[Tensor, "B S D"],
        levels: Levels,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from each query to the points around its reference.

        Args:
            query: Determines sampling offsets and attention weights.
            reference: Reference points (R = 2: x, y) or boxes (R = 4: cxcywh), in 0-1 of the unpadded image. Sampling
                offsets are in cells of each map for points, and relative to the box size for boxes.
            tokens: The values: the cells of all feature maps.
            levels: The feature maps that the tokens belong to.
        """
        value = self.value(tokens)
        if levels.padding_mask is not None:
            value = value.masked_fill(levels.padding_mask[..., None], 0.0)
        locations, weights = self.sampling_locations(query, reference, levels), self.attention_weights(query)
        return self.output(self.sampling(value, levels, locations, weights, self.points))

    def sampling_locations(
        self, query: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q R"], levels: Levels
    ) -> Float[Tensor, "B Q heads K 2"]:
        """Return the sampling locations of each query, map by map (x, y; in 0-1 of the padded map)."""
        sampling_offsets = self.offset(query).unflatten(2, (self.heads, -1))  # [B, Q, heads, K 2]
        valid_ratios = levels.valid_ratios[:, None]  # [B, 1, levels, 2]
        if reference.shape[-1] == 2:
            steps = (1 / levels.sizes[None, None]).unbind(2)  # the size of a cell
        else:
            sizes = (reference[:, :, None, 2:] * valid_ratios).unbind(2)  # levels x [B, Q, 2]
            steps = tuple(size / (2 * count) for size, count in zip(sizes, self.points, strict=True))
        centre = reference[:, :, None, :2] * valid_ratios  # [B, Q, levels, 2]
        # Points and coordinates are one axis, because broadcasting along short axes is slow.
        centre, step = (
            repeat_by_level(x, self.points, 2).flatten(2)[:, :, None] for x in (centre, torch.stack(steps, 2))
        )
        return (centre + sampling_offsets * step).unflatten(3, (-1, 2))

    def attention_weights(self, query: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q heads K"]:
        """Return the attention weight of each sampling point; they sum to 1 for every query and head."""
        weights: Tensor = self.softmax(self.weight(query).unflatten(2, (self.heads, -1)))
        return weights


def repeat_by_level(x: Tensor, points: tuple[int, ...], axis: int) -> Tensor:
    """Repeat the values of each level along `axis`, one level after another, for each of its `points`."""
    levels = zip(x.split(1, axis), points, strict=True)
    return torch.cat([level.repeat_interleave(count, axis) for level, count in levels], axis)


class GridSample(nn.Module):
    """Weighted sum of values at sampling locations, with `torch.nn.functional.grid_sample`."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads K 2"],
        attention_weights: Float[Tensor, "B Q heads K"],
        points: tuple[int, ...],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over each query's points; each head sums its share of the features.

        Args:
            value: The cells of all feature maps.
            levels: The feature maps that the cells belong to.
            sampling_locations: x, y in 0-1 of the padded map, map by map.
            attention_weights: Weight of each point.
            points: Sampling points of each head in each map; K in total.
        """
        cells = value.unflatten(2, (attention_weights.shape[2], -1))
        return sample(cells, levels.shapes, sampling_locations, attention_weights, points)


class NearestSample(nn.Module):
    """Weighted sum of the values of single cells, without interpolation (discrete sampling of RT-DETRv2).

    The cell of a location x in a map of W cells is floor(W x + 0.5), or the last one that is not padding. Locations get
    no gradients.
    """

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads K 2"],
        attention_weights: Float[Tensor, "B Q heads K"],
        points: tuple[int, ...],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over each query's points; see `GridSample.forward`."""
        heads, total = attention_weights.shape[2:]
        sizes = levels.sizes.long()
        counts = sizes.prod(1)
        starts = counts.cumsum(0) - counts  # index of each map's first cell
        width, start = repeat_by_level(torch.stack([sizes[:, 0], starts], 1), points, 0).unbind(1)  # [K]
        size, valid = (
            repeat_by_level(each, points, 1)[:, None, None]  # [1 or B, 1, 1, K, 2]
            for each in (levels.sizes[None], (levels.valid_ratios * levels.sizes).round())
        )
        cells = (at_least_float32(sampling_locations) * size + 0.5).floor()
        cells = cells.clamp(torch.zeros_like(valid), valid - 1)
        # Integers, because a runtime may compute in 16 bits what is a float.
        x, y = cells.masked_fill(cells.isnan(), 0).long().unbind(-1)
        index = y * width + x + start  # [B, Q, heads, K]
        table = value.unflatten(2, (heads, -1)).transpose(1, 2)  # [B, heads, S, D / heads]
        index = index.transpose(1, 2).flatten(2)[..., None].expand(-1, -1, -1, table.shape[3])
        rows = table.gather(2, index).unflatten(2, (-1, total))  # [B, heads, Q, K, D / heads]
        return (rows * attention_weights.transpose(1, 2)[..., None]).sum(3).transpose(1, 2).flatten(2)


def interpolate(maps: Float[Tensor, "N D h w"], grid: Float[Tensor, "N P Q 2"]) -> Float[Tensor, "N D P Q"]:
    """Interpolate maps bilinearly at (x, y) in -1 to 1."""
    return F.grid_sample(maps, grid, align_corners=False)


def sample(
    value: Float[Tensor, "B S heads head_width"],
    shapes: Shapes,
    sampling_locations: Float[Tensor, "B Q heads K 2"],
    attention_weights: Float[Tensor, "B Q heads K"],
    points: tuple[int, ...],
    interpolate: Callable[[Tensor, Tensor], Tensor] = interpolate,
) -> Float[Tensor, "B Q D"]:
    """Interpolate each map at its sampling locations and return weighted sums; see `GridSample`."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    # Queries are the last axis, so that sums over the points of a map are sums of contiguous rows.
    grids = (2 * sampling_locations - 1).permute(0, 2, 3, 1, 4).flatten(0, 1)  # [B heads, K, Q, 2]
    grids = grids.split(points, dim=1)  # levels x [B heads, P, Q, 2]
    weights = attention_weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None]  # [B heads, 1, K, Q]
    weights = weights.split(points, dim=2)
    output = torch.stack(
        [
            (interpolate(cells.unflatten(2, shape), grid) * weight).sum(2)
            for cells, shape, grid, weight in zip(maps, shapes, grids, weights, strict=True)
        ]
    ).sum(0)  # [B heads, head_width, Q]
    return output.view(batch, heads, -1, output.shape[-1]).flatten(1, 2).transpose(1, 2)  # [B, Q, D]
