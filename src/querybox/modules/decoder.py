"""The decoder: queries attend to one another and to the memory, and every layer predicts.

`Decoder` is DETR's. `ReferenceDecoder` is that of Deformable DETR and DINO, whose queries have a reference: the place
where they look, from which their box is measured.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.boxes import inverse_sigmoid
from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.heads import BoxHead, ClassHead, DeltaHead, IndependentClassHead
from querybox.structures import Memory, Predictions, Queries

Refinement = Literal["keep", "refine", "look_forward_twice"]


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, then the feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, norm_first: bool) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.self_attention_residual = Residual(width, dropout, norm_first=norm_first)
        self.cross_attention = Attention(width, heads, dropout)
        self.cross_attention_residual = Residual(width, dropout, norm_first=norm_first)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = Residual(width, dropout, norm_first=norm_first)

    def forward(
        self, content: Float[Tensor, "B Q D"], position: Float[Tensor, "B Q D"], memory: Memory
    ) -> Float[Tensor, "B Q D"]:
        """Refine the queries' content; `position` is the queries' own."""
        content = self.self_attention_residual(
            content, lambda x: self.self_attention(x + position, x + position, x)
        )
        keys = memory.tokens + memory.position
        content = self.cross_attention_residual(
            content, lambda x: self.cross_attention(x + position, keys, memory.tokens, memory.padding_mask)
        )
        return self.feedforward_residual(content, self.feedforward)


class Decoder(nn.Module):
    """Runs the layers; one norm and one pair of heads serve them all.

    With `norm_between`, what a layer hands to the next is normalised, too, as transformers has it where its
    ``auxiliary_loss`` is set; there the heads see the last layer normalised twice, and the others once.
    """

    def __init__(
        self,
        class_head: ClassHead,
        box_head: BoxHead,
        *,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        norm_first: bool,
        norm_between: bool = False,
    ) -> None:
        super().__init__()
        self.norm_between = norm_between
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feedforward, dropout, norm_first=norm_first) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.class_head = class_head
        self.box_head = box_head

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        content, states = queries.content, []
        for layer in self.layers:
            content = layer(content, queries.position, memory)
            if self.norm_between:
                content = self.norm(content)
            states.append(content)
        if self.norm_between:
            answers = torch.stack([*states[:-1], self.norm(content)])  # [L, B, Q, D]
        else:
            answers = self.norm(torch.stack(states))  # [L, B, Q, D]
        logits, boxes = self.class_head(answers), self.box_head(answers)  # [L, B, Q, K], [L, B, Q, 4]
        return tuple(Predictions(logits=a, boxes=b) for a, b in zip(logits, boxes, strict=True))


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention around their references, the feed-forward network."""

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = DeformableAttention(width, heads, levels, points)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.self_attention_residual = Residual(width, dropout, norm_first=False)
        self.cross_attention_residual = Residual(width, dropout, norm_first=False)
        self.feedforward_residual = Residual(width, dropout, norm_first=False)

    def forward(
        self,
        content: Float[Tensor, "B Q D"],
        position: Float[Tensor, "B Q D"],
        reference: Float[Tensor, "B Q R"],
        queries: Queries,
        memory: Memory,
    ) -> Float[Tensor, "B Q D"]:
        """Refine the queries' content; `queries` says which of them are there for denoising."""
        levels = memory.levels
        assert levels is not None

        def agree(x: Tensor) -> Tensor:
            first = queries.num_denoising
            place = x + position
            # Denoising queries are not even shown to the others: they would see the answers.
            others = place[:, first:]
            agreed = self.self_attention(others, others, x[:, first:], blocked=queries.later)
            if not first:
                return agreed
            denoised = self.self_attention(place[:, :first], place, x, blocked=queries.blocked)
            return torch.cat([denoised, agreed], 1)

        def look(x: Tensor) -> Tensor:
            return self.cross_attention(x + position, reference, memory.tokens, levels)

        content = self.self_attention_residual(content, agree)
        content = self.cross_attention_residual(content, look)
        return self.feedforward_residual(content, self.feedforward)


class ReferenceDecoder(nn.Module):
    """Runs the layers; each answers with a box measured from the reference, which may move there.

    How references move is where a gradient stops:

    - ``keep``: they do not move.
    - ``refine``: to the new box, cut off from its gradient (Deformable DETR, appendix A.4).
    - ``look_forward_twice``: to the new box; it is cut off where the next layer looks there and where the
      box was measured from, but the next layer's box has a gradient through it (DINO, section 3.5).
    """

    def __init__(
        self,
        layers: list[DeformableDecoderLayer],
        class_heads: list[IndependentClassHead],
        box_heads: list[DeltaHead],
        *,
        refinement: Refinement,
        norm: nn.Module,
        position: nn.Module | None = None,
        margin: float = 1e-5,
    ) -> None:
        """Compose it.

        Args:
            layers: One or more.
            class_heads: One a layer, or one that serves all.
            box_heads: One a layer, or one that serves all.
            refinement: How references move.
            norm: Of the content before the heads.
            position: Makes the queries' position from their references; None takes the position they came with.
            margin: Boxes are measured from references that are this far from 0 and 1 at least.
        """
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.class_heads = nn.ModuleList(class_heads)
        self.box_heads = nn.ModuleList(box_heads)
        self.refinement = refinement
        self.norm = norm
        self.position = position
        self.margin = margin

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, first to last."""
        assert queries.reference is not None
        content, position = queries.content, queries.position
        seen = reference = queries.reference  # where layers look; where boxes are measured from
        predictions = []
        for index, layer in enumerate(self.layers):
            class_head = self.class_heads[index % len(self.class_heads)]
            box_head = self.box_heads[index % len(self.box_heads)]
            if self.position is not None:
                position = self.position(seen, memory)
            content = layer(content, position, seen, queries, memory)
            answer = self.norm(content)
            boxes = move(reference, box_head(answer), self.margin)
            predictions.append(Predictions(logits=class_head(answer), boxes=boxes, no_object=False))
            if self.refinement == "refine":
                seen = reference = boxes.detach()
            elif self.refinement == "look_forward_twice":
                reference = move(seen, box_head(content), self.margin)  # the content as it is, not normalised
                seen = reference.detach()
        return tuple(predictions)


def move(
    reference: Float[Tensor, "B Q R"], delta: Float[Tensor, "B Q 4"], margin: float = 1e-5
) -> Float[Tensor, "B Q 4"]:
    """Return the boxes (cxcywh in 0-1) that lie `delta` from the references, before the sigmoid.

    From a reference point (R = 2) only the box's centre is measured.
    """
    start = inverse_sigmoid(reference, margin)
    if start.shape[-1] == 2:
        start = torch.cat([start, torch.zeros_like(start)], dim=-1)
    return (start + delta).sigmoid()


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
