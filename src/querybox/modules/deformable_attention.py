"""Multi-scale deformable attention: each query attends to a few learned points of each feature map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querybox.structures import Levels, Shapes


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention of Deformable DETR (Zhu et al. 2020, section 4.1, equation 3)."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        """Create the projections. Initially, each head samples in a different direction.

        Args:
            width: Features of a token, D.
            heads: Attention heads, each with its own sampling points.
            levels: Feature maps, L.
            points: Sampling points of each head in each map, P.
        """
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.offset = nn.Linear(width, heads * levels * points * 2)
        self.weight = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.sampling = GridSample()
        angle = 2 * math.pi * torch.arange(heads) / heads
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)  # [heads, 2]
        direction /= direction.abs().amax(1, keepdim=True)
        distance = torch.arange(1, points + 1)[:, None]  # the p-th point of a head is p steps away
        offsets = (direction[:, None, None] * distance).expand(-1, levels, -1, -1)  # [heads, L, P, 2]
        nn.init.zeros_(self.offset.weight)
        self.offset.bias = nn.Parameter(offsets.flatten().clone())
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)
        for projection in (self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

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
        return self.output(self.sampling(value, levels, locations, weights))

    def sampling_locations(
        self, query: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q R"], levels: Levels
    ) -> Float[Tensor, "B Q heads L P 2"]:
        """Return the sampling locations of each query (x, y; in 0-1 of the padded map)."""
        sampling_offsets = self.offset(query).unflatten(2, (self.heads, -1))  # [B, Q, heads, L P 2]
        valid_ratios = levels.valid_ratios[:, None]  # [B, 1, L, 2]
        if reference.shape[-1] == 2:
            step = 1 / levels.sizes[None, None]  # the size of a cell
        else:
            step = reference[:, :, None, 2:] * valid_ratios / (2 * self.points)  # [B, Q, L, 2]
        centre = reference[:, :, None, :2] * valid_ratios  # [B, Q, L, 2]
        # Points and coordinates are one axis, because broadcasting along short axes is slow.
        centre, step = (x.repeat_interleave(self.points, 2).flatten(2)[:, :, None] for x in (centre, step))
        return (centre + sampling_offsets * step).unflatten(3, (self.levels, self.points, 2))

    def attention_weights(self, query: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q heads L P"]:
        """Return the attention weight of each sampling point; they sum to 1 for every query and head."""
        weights = self.softmax(self.weight(query).unflatten(2, (self.heads, -1)))  # [B, Q, heads, L P]
        return weights.unflatten(3, (self.levels, self.points))


class GridSample(nn.Module):
    """Weighted sum of values at sampling locations, with `torch.nn.functional.grid_sample`."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        sampling_locations: Float[Tensor, "B Q heads L P 2"],
        attention_weights: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over each query's points; each head sums its share of the features.

        Args:
            value: The cells of all feature maps.
            levels: The feature maps that the cells belong to.
            sampling_locations: x, y in 0-1 of the padded map.
            attention_weights: Weight of each point.
        """
        heads = attention_weights.shape[2]
        return sample(value.unflatten(2, (heads, -1)), levels.shapes, sampling_locations, attention_weights)


def sample(
    value: Float[Tensor, "B S heads head_width"],
    shapes: Shapes,
    sampling_locations: Float[Tensor, "B Q heads L P 2"],
    attention_weights: Float[Tensor, "B Q heads L P"],
) -> Float[Tensor, "B Q D"]:
    """Interpolate each map bilinearly at the sampling locations (see `GridSample.forward`) and return weighted sums."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    # Queries are the last axis, so that sums over the points of a map are sums of contiguous rows.
    grids = (2 * sampling_locations - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [L, B heads, P, Q, 2]
    weights = attention_weights.permute(3, 0, 2, 4, 1).flatten(1, 2)[:, :, None]  # [L, B heads, 1, P, Q]
    output = torch.stack(
        [
            (F.grid_sample(cells.unflatten(2, shape), grid, align_corners=False) * weight).sum(2)
            for cells, shape, grid, weight in zip(maps, shapes, grids, weights, strict=True)
        ]
    ).sum(0)  # [B heads, head_width, Q]
    return output.view(batch, heads, -1, output.shape[-1]).flatten(1, 2).transpose(1, 2)  # [B, Q, D]
