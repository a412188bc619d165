"""The decoder of Conditional DETR (Meng et al. 2021), whose cross-attention compares content and position separately.

In DETR queries and keys are sums of content and position. Here they are concatenations in every head: the content of a
query is compared with the content of a cell, and the conditional spatial query, the positional embedding of the
reference point scaled by the content, with the position of the cell.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.decoder import apply_deltas
from querybox.modules.heads import DeltaHead, SigmoidClassHead
from querybox.modules.position import sine_boxes
from querybox.structures import Memory, Predictions, Queries


def projection(width: int) -> nn.Linear:
    """Return a linear layer initialised as in the published models."""
    layer = nn.Linear(width, width)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class SummedProjection(nn.Module):
    """Sum of separate projections of content and position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)

    def forward(self, x: Float[Tensor, "B N both"]) -> Float[Tensor, "B N D"]:
        """Project the concatenation of content and position."""
        content, position = x.chunk(2, dim=-1)
        return self.content(content) + self.position(position)


class SpatialQuery(nn.Module):
    """Query of cross-attention: the projected content and spatial query, concatenated in every head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.spatial = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B Q three"]) -> Float[Tensor, "B Q twice"]:
        """Project the concatenation of content, position and spatial query; the position is not used."""
        content, _, spatial = x.chunk(3, dim=-1)
        return concatenate_heads(self.content(content), self.spatial(spatial), self.heads)


class FirstSpatialQuery(nn.Module):
    """`SpatialQuery` of the first layer: the projected position is added to the content, which is still zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.spatial = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B Q three"]) -> Float[Tensor, "B Q twice"]:
        """Project the concatenation of content, position and spatial query."""
        content, position, spatial = x.chunk(3, dim=-1)
        return concatenate_heads(
            self.content(content) + self.position(position), self.spatial(spatial), self.heads
        )


class SpatialKey(nn.Module):
    """Key of cross-attention: the projected content and position, concatenated in every head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B S both"]) -> Float[Tensor, "B S both"]:
        """Project the concatenation of content and position."""
        content, position = x.chunk(2, dim=-1)
        return concatenate_heads(self.content(content), self.position(position), self.heads)


class FirstSpatialKey(nn.Module):
    """`SpatialKey` of the first layer: the projected position is also added to the content."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B S both"]) -> Float[Tensor, "B S both"]:
        """Project the concatenation of content and position."""
        content, position = x.chunk(2, dim=-1)
        position = self.position(position)
        return concatenate_heads(self.content(content) + position, position, self.heads)


def concatenate_heads(
    content: Float[Tensor, "B N D"], position: Float[Tensor, "B N D"], heads: int
) -> Float[Tensor, "B N twice"]:
    """Concatenate content and position separately for each head."""
    parts = [x.unflatten(2, (heads, -1)) for x in (content, position)]  # [B, N, heads, D / heads]
    return torch.cat(parts, dim=-1).flatten(2)


class ConditionalDecoderLayer(nn.Module):
    """Self-attention among queries, conditional cross-attention to the memory, then a feed-forward network."""

    def __init__(
        self, query: nn.Module, key: nn.Module, *, width: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        """Create the layer; `query` and `key` are the projections of cross-attention."""
        super().__init__()
        self.self_attention = Attention(
            width, heads, dropout, query=SummedProjection(width), key=SummedProjection(width)
        )
        self.self_attention_residual = Residual(width, dropout)
        self.cross_attention = Attention(width, heads, dropout, query=query, key=key)
        self.cross_attention_residual = Residual(width, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = Residual(width, dropout)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        spatial: Float[Tensor, "B Q D"],
        memory: Memory,
    ) -> Float[Tensor, "B Q D"]:
        """Return the updated content; `position` is learned, `spatial` is the spatial query."""
        assert memory.position is not None
        keys = torch.cat([memory.tokens, memory.position], dim=-1)  # [B, S, 2 D]

        def self_attention(x: Tensor) -> Tensor:
            both = torch.cat([x, position], dim=-1)  # [B, Q, 2 D]
            return self.self_attention(both, both, x)

        def cross_attention(x: Tensor) -> Tensor:
            query = torch.cat([x, position, spatial], dim=-1)  # [B, Q, 3 D]
            return self.cross_attention(query, keys, memory.tokens, memory.padding_mask)

        content = self.self_attention_residual(content, self_attention)
        content = self.cross_attention_residual(content, cross_attention)
        return self.feedforward_residual(content, self.feedforward)


class ConditionalDecoder(nn.Module):
    """Decoder of Conditional DETR; boxes are relative to reference points, which do not change.

    Attributes:
        last_only: Whether to predict with the last layer only, which is enough for inference.
    """

    def __init__(
        self,
        layers: list[ConditionalDecoderLayer],
        class_head: SigmoidClassHead,
        box_head: DeltaHead,
        *,
        width: int,
    ) -> None:
        """Create the decoder; the heads are shared by all layers."""
        super().__init__()
        self.last_only = False
        self.layers = nn.ModuleList(layers)
        self.query_scale = nn.Sequential(projection(width), nn.ReLU(), projection(width))
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head
        self.no_object = class_head.no_object

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        content, reference = queries.content, queries.reference
        assert reference is not None
        reference_embedding = sine_boxes(reference.flip(-1), content.shape[-1])  # [B, Q, D], y before x
        spatial, states = reference_embedding, list[Tensor]()
        for layer in self.layers:
            if states:  # conditional on the content of the previous layer
                spatial = reference_embedding * self.query_scale(content)
            content = layer(content, queries.position, spatial, memory)
            states.append(content)
        outputs = self.norm(torch.stack(states[-1:] if self.last_only else states))  # [L, B, Q, D]
        logits, deltas = self.class_head(outputs), self.box_head(outputs)  # [L, B, Q, C], [L, B, Q, 4]
        return tuple(
            Predictions(logits=a, boxes=apply_deltas(reference, b), no_object=self.no_object, content=c)
            for a, b, c in zip(logits, deltas, outputs, strict=True)
        )
