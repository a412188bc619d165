"""Multi-scale deformable attention: every query looks at a few points of each feature map, and learns where."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querybox.structures import Levels, Shapes


class DeformableAttention(nn.Module):
    """Deformable DETR (Zhu et al. 2020), section 4.1, equation 3, in plain PyTorch."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        """Build the projections; at first each head looks in a direction of its own.

        Args:
            width: Features of a token, D.
            heads: Subspaces; each chooses its own points.
            levels: Feature maps, L.
            points: Points that a head looks at in each map, P.
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
        distance = torch.arange(1, points + 1)[:, None]  # the further points of a head lie further out
        first = (direction[:, None, None] * distance).expand(-1, levels, -1, -1)  # [heads, L, P, 2]
        nn.init.zeros_(self.offset.weight)
        self.offset.bias = nn.Parameter(first.flatten().clone())
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
        """Take a weighted average of the tokens at points around each query's reference.

        Args:
            query: Says where to look and how much each point counts.
            reference: A point (R = 2: x, y) or a box (R = 4: cxcywh), in 0-1 of the unpadded image. Offsets from a
                point are in cells of each map, from a box in parts of its size.
            tokens: What is seen: the cells of all maps.
            levels: How the tokens make up the maps.
        """
        value = self.value(tokens)
        if levels.padding_mask is not None:
            value = value.masked_fill(levels.padding_mask[..., None], 0.0)
        places, weight = self.choose(query, reference, levels), self.weigh(query)
        return self.output(self.sampling(value, levels, places, weight))

    def choose(
        self, query: Float[Tensor, "B Q D"], reference: Float[Tensor, "B Q R"], levels: Levels
    ) -> Float[Tensor, "B Q heads L P 2"]:
        """Return where each query looks (x, y; 0-1 of the padded map)."""
        offset = self.offset(query).unflatten(2, (self.heads, -1))  # [B, Q, heads, L P 2]
        valid = levels.valid_ratios[:, None]  # [B, 1, L, 2]
        if reference.shape[-1] == 2:
            step = 1 / levels.sizes[None, None]  # a cell
        else:
            step = reference[:, :, None, 2:] * valid / (2 * self.points)  # [B, Q, L, 2]
        centre = reference[:, :, None, :2] * valid  # [B, Q, L, 2]
        # All points of a head side by side in memory: short axes are slow to broadcast along.
        centre, step = (x.repeat_interleave(self.points, 2).flatten(2)[:, :, None] for x in (centre, step))
        return (centre + offset * step).unflatten(3, (self.levels, self.points, 2))

    def weigh(self, query: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q heads L P"]:
        """Return how much each place counts; they add up to 1 for every head."""
        weight = self.softmax(self.weight(query).unflatten(2, (self.heads, -1)))  # [B, Q, heads, L P]
        return weight.unflatten(3, (self.levels, self.points))


class GridSample(nn.Module):
    """Interpolates the values at the places where queries look, by `torch.nn.functional.grid_sample`."""

    def forward(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        places: Float[Tensor, "B Q heads L P 2"],
        weight: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return the weighted sum over a query's places, each head's in its share of the features.

        Args:
            value: The cells of all maps.
            levels: How the cells make up the maps.
            places: x, y; 0-1 of the padded map.
            weight: How much each place counts.
        """
        return sample(value.unflatten(2, (weight.shape[2], -1)), levels.shapes, places, weight)


def sample(
    value: Float[Tensor, "B S heads head_width"],
    shapes: Shapes,
    places: Float[Tensor, "B Q heads L P 2"],
    weight: Float[Tensor, "B Q heads L P"],
) -> Float[Tensor, "B Q D"]:
    """Interpolate each map bilinearly at `places` (x, y; 0-1 of the padded map) and add up by `weight`."""
    batch, _, heads, _ = value.shape
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], dim=2)
    # Queries come last, so that the sum over a map's points runs along memory.
    grids = (2 * places - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [L, B heads, P, Q, 2]
    weights = weight.permute(3, 0, 2, 4, 1).flatten(1, 2)[:, :, None]  # [L, B heads, 1, P, Q]
    mixed = torch.stack(
        [
            (F.grid_sample(cells.unflatten(2, shape), grid, align_corners=False) * share).sum(2)
            for cells, shape, grid, share in zip(maps, shapes, grids, weights, strict=True)
        ]
    ).sum(0)  # [B heads, head_width, Q]
    return mixed.view(batch, heads, -1, mixed.shape[-1]).flatten(1, 2).transpose(1, 2)  # [B, Q, D]
