"""Multi-head attention ("Attention Is All You Need", section 3.2)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


def attention_mask(
    padding_mask: Bool[Tensor, "B S"] | None, blocked: Bool[Tensor, "Q S"] | None
) -> Bool[Tensor, "_ 1 _ S"] | None:
    """Combine both masks (True = may not attend) into one broadcastable to [B, heads, Q, S]; None if both are None."""
    if padding_mask is None:
        return None if blocked is None else blocked[None, None]
    keys = padding_mask[:, None, None]  # [B, 1, 1, S]
    return keys if blocked is None else keys | blocked


class Attention(nn.Module):
    """Multi-head attention with separate projections of queries, keys and values."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        *,
        query: nn.Module | None = None,
        key: nn.Module | None = None,
    ) -> None:
        """Create the projections.

        Args:
            width: Features of a token, D.
            heads: Attention heads.
            dropout: Dropout probability of the attention weights.
            query: Projection of queries; None for a linear layer. Its output may be wider than D, but must be as wide
                as that of `key`.
            key: Projection of keys; None for a linear layer.

        Raises:
            ValueError: `heads` does not divide `width`.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"attention: width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = query or nn.Linear(width, width)
        self.key = key or nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dot_product = ScaledDotProduct()
        for projection in (self.query, self.key, self.value):
            if isinstance(projection, nn.Linear):  # others are already initialised
                # The bound of the published models, which initialise the three as one [3 D, D] matrix.
                nn.init.xavier_uniform_(projection.weight, gain=1 / math.sqrt(2))
                nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        query: Float[Tensor, "B Q _"],
        key: Float[Tensor, "B S _"],
        value: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None = None,
        *,
        blocked: Bool[Tensor, "Q S"] | None = None,
    ) -> Float[Tensor, "B Q D"]:
        """Attend from every query to every key that is neither padded nor `blocked` (True = may not attend)."""
        mask = attention_mask(padding_mask, blocked)
        q, k, v = (self.split(x) for x in (self.query(query), self.key(key), self.value(value)))
        output = self.dot_product(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.output(output.transpose(1, 2).flatten(2))

    def split(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N head_width"]:
        """Split the features into heads."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ScaledDotProduct(nn.Module):
    """Scaled dot-product attention, separately for each head."""

    def forward(
        self,
        query: Float[Tensor, "B heads Q head_width"],
        key: Float[Tensor, "B heads S head_width"],
        value: Float[Tensor, "B heads S value_width"],
        mask: Bool[Tensor, "_ 1 _ S"] | None,
        dropout: float,
    ) -> Float[Tensor, "B heads Q value_width"]:
        """Return the values averaged with the attention weights.

        Args:
            query: Projected queries.
            key: Projected keys.
            value: Projected values, whose width may differ from that of the keys.
            mask: True = the query may not attend to the key; see `attention_mask`.
            dropout: Dropout probability of the attention weights, 0-1.
        """
        allowed = None if mask is None else ~mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
