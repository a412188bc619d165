"""The decoder: queries agree among themselves, look at the memory, and answer after every layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.heads import BoxHead, ClassHead
from querybox.structures import Memory, Predictions, Queries


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
