"""The decoder of Conditional DETR (Meng et al. 2021): content and place are compared each on its own.

In DETR a query and a key are sums of content and position, so that what is seen and where it lies are compared at once.
Here every head compares them side by side: what a query looks for with what a cell shows, and the query's place, which
its content scales (the conditional spatial query), with the cell's place.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.decoder import move
from querybox.modules.heads import DeltaHead, IndependentClassHead
from querybox.modules.position import sine_boxes
from querybox.structures import Memory, Predictions, Queries


def projection(width: int) -> nn.Linear:
    """Return a linear layer as the published models begin with it."""
    layer = nn.Linear(width, width)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class SummedProjection(nn.Module):
    """Projects content and position, each by a layer of its own, and adds them up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)

    def forward(self, x: Float[Tensor, "B N both"]) -> Float[Tensor, "B N D"]:
        """Project; content and position stand side by side."""
        content, position = x.chunk(2, dim=-1)
        return self.content(content) + self.position(position)


class SpatialQuery(nn.Module):
    """Projects what a query looks for and its place, and puts both side by side in every head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.spatial = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B Q three"]) -> Float[Tensor, "B Q twice"]:
        """Project; content, position and spatial query stand side by side, and the position is not used."""
        content, _, spatial = x.chunk(3, dim=-1)
        return beside(self.content(content), self.spatial(spatial), self.heads)


class FirstSpatialQuery(nn.Module):
    """That of the first layer, whose content is still zero: the learned position is added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.spatial = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B Q three"]) -> Float[Tensor, "B Q twice"]:
        """Project; content, position and spatial query stand side by side."""
        content, position, spatial = x.chunk(3, dim=-1)
        return beside(self.content(content) + self.position(position), self.spatial(spatial), self.heads)


class SpatialKey(nn.Module):
    """Projects what a cell shows and its place, and puts both side by side in every head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B S both"]) -> Float[Tensor, "B S both"]:
        """Project; content and position stand side by side."""
        content, position = x.chunk(2, dim=-1)
        return beside(self.content(content), self.position(position), self.heads)


class FirstSpatialKey(nn.Module):
    """That of the first layer, which adds the place to what the cell shows as well."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.content = projection(width)
        self.position = projection(width)
        self.heads = heads

    def forward(self, x: Float[Tensor, "B S both"]) -> Float[Tensor, "B S both"]:
        """Project; content and position stand side by side."""
        content, position = x.chunk(2, dim=-1)
        place = self.position(position)
        return beside(self.content(content) + place, place, self.heads)


def beside(
    content: Float[Tensor, "B N D"], place: Float[Tensor, "B N D"], heads: int
) -> Float[Tensor, "B N twice"]:
    """Put each head's part of the place beside its part of the content."""
    parts = [x.unflatten(2, (heads, -1)) for x in (content, place)]  # [B, N, heads, D / heads]
    return torch.cat(parts, dim=-1).flatten(2)


class ConditionalDecoderLayer(nn.Module):
    """Self-attention among queries, conditional cross-attention to the memory, then the feed-forward network."""

    def __init__(
        self, query: nn.Module, key: nn.Module, *, width: int, heads: int, feedforward: int, dropout: float
    ) -> None:
        """Compose it; `query` and `key` are the projections of cross-attention."""
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
        """Refine the queries' content; `position` is learned, `spatial` is the spatial query."""
        keys = torch.cat([memory.tokens, memory.position], dim=-1)  # [B, S, 2 D]

        def among_queries(x: Tensor) -> Tensor:
            both = torch.cat([x, position], dim=-1)  # [B, Q, 2 D]
            return self.self_attention(both, both, x)

        def to_memory(x: Tensor) -> Tensor:
            query = torch.cat([x, position, spatial], dim=-1)  # [B, Q, 3 D]
            return self.cross_attention(query, keys, memory.tokens, memory.padding_mask)

        content = self.self_attention_residual(content, among_queries)
        content = self.cross_attention_residual(content, to_memory)
        return self.feedforward_residual(content, self.feedforward)


class ConditionalDecoder(nn.Module):
    """Runs the layers; boxes are measured from the queries' reference points, which do not move.

    Attributes:
        last_only: Whether only the predictions of the last layer are made, which are all that inference needs.
    """

    def __init__(
        self,
        layers: list[ConditionalDecoderLayer],
        class_head: IndependentClassHead,
        box_head: DeltaHead,
        *,
        width: int,
    ) -> None:
        """Compose it; the heads serve all layers."""
        super().__init__()
        self.last_only = False
        self.layers = nn.ModuleList(layers)
        self.query_scale = nn.Sequential(projection(width), nn.ReLU(), projection(width))
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        content, reference = queries.content, queries.reference
        assert reference is not None
        place = sine_boxes(reference.flip(-1), content.shape[-1])  # [B, Q, D], y before x
        spatial, states = place, list[Tensor]()
        for layer in self.layers:
            if states:  # conditional: what is known of the object scales the place
                spatial = place * self.query_scale(content)
            content = layer(content, queries.position, spatial, memory)
            states.append(content)
        answers = self.norm(torch.stack(states[-1:] if self.last_only else states))  # [L, B, Q, D]
        logits, deltas = self.class_head(answers), self.box_head(answers)  # [L, B, Q, C], [L, B, Q, 4]
        return tuple(
            Predictions(logits=a, boxes=move(reference, b), no_object=False)
            for a, b in zip(logits, deltas, strict=True)
        )
