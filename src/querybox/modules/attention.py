"""Multi-head attention, as "Attention Is All You Need" (section 3.2) has it."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Every query token takes a weighted average of the value tokens, in `heads` subspaces at once."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        """Build the four projections.

        Raises:
            ValueError: `heads` does not divide `width`.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value):
            # The bound of the published models, whose three projections are one [3 D, D] matrix.
            nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        query: Float[Tensor, "B Q D"],
        key: Float[Tensor, "B S D"],
        value: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None = None,
        *,
        blocked: Bool[Tensor, "Q S"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from every query to every key that is neither padding nor `blocked` (both True = forbidden)."""
        forbidden = blocked if padding_mask is None else padding_mask[:, None, None, :]
        allowed = None if forbidden is None else ~forbidden  # [B, 1, 1, S] or [Q, S]
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(query)),
            self.split(self.key(key)),
            self.split(self.value(value)),
            attn_mask=allowed,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [B, heads, Q, D / heads]
        return self.output(mixed.transpose(1, 2).flatten(2))

    def split(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N head_width"]:
        """Cut the width into heads."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)
