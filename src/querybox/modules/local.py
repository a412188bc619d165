"""A local start for DETR: the same model, begun so that every query looks at a place of its own.

A DETR that starts at random looks everywhere, and takes many thousand steps to learn to look at one place: its
positional encoding goes round but once from edge to edge, so that neighbouring cells are nearly alike, and its random
projections keep little of that. Here the encoding is fine, the queries begin at points spread over the image, and the
query and key projections of cross-attention begin as the same permutation, so that the attention of a query begins
as a bump around its point. Nothing is fixed: queries and projections are trained as ever.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.modules.decoder import Decoder, DecoderLayer
from querybox.modules.position import SinePositionEncoding
from querybox.structures import Memory, Queries


def fine_encoding(width: int) -> SinePositionEncoding:
    """Return an encoding that tells neighbouring cells apart, and outweighs what is seen there."""
    return SinePositionEncoding(width, temperature=20.0, cycles=6.0, offset=-0.5, amplitude=3.0)


class PlacedQueries(nn.Module):
    """Learned queries that begin at points spread over the image, and know where they are."""

    def __init__(self, count: int, encoding: SinePositionEncoding) -> None:
        super().__init__()
        y, x = (2 * math.pi * spread_points(count)).unbind(1)
        position = encoding.encode(y, x)
        self.position = nn.Parameter(position)
        self.content = nn.Parameter(position / encoding.amplitude)

    def forward(self, memory: Memory) -> Queries:
        """Repeat the queries for each image of `memory`."""
        batch = memory.tokens.shape[0]
        return Queries(
            content=self.content.expand(batch, -1, -1), position=self.position.expand(batch, -1, -1)
        )


def spread_points(count: int) -> Float[Tensor, "Q 2"]:
    """Return (y, x) of points in 0-1, evenly spread for any count (the R2 sequence of M. Roberts, 2018)."""
    plastic = 1.32471795724474602596  # the real root of x^3 = x + 1
    steps = torch.arange(count, dtype=torch.float64)[:, None]
    return ((0.5 + steps / torch.tensor([plastic**2, plastic], dtype=torch.float64)) % 1).float()


@torch.no_grad()
def look_alike(decoder: Decoder, gain: float = 0.6) -> None:
    """Make cross-attention score a key by how alike it is to the query.

    Both projections become the same permutation, which deals the encoding's sine and cosine pairs out to the heads in
    turn, so that each head gets fine and coarse ones of both axes. At `gain` 0.6 the score at a query's own place is
    near 6, against 0 elsewhere.
    """
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        attention = layer.cross_attention
        width = attention.query.in_features
        pairs = torch.arange(width).view(-1, 2)  # a sine and its cosine stay together
        order = torch.cat([pairs[head :: attention.heads].flatten() for head in range(attention.heads)])
        permutation = gain * torch.eye(width)[order]
        attention.query.weight.copy_(permutation)
        attention.key.weight.copy_(permutation)
