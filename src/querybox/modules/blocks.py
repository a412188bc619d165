"""What every transformer layer is made of, beside attention: the residual path and the feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class Residual(nn.Module):
    """Adds the output of a block to its input, and normalises the sum (post-norm)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B N D"], block: Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N D"]]
    ) -> Float[Tensor, "B N D"]:
        """Apply `block` on the residual path."""
        return self.norm(x + self.dropout(block(x)))


class PreNormResidual(nn.Module):
    """Normalises the input of a block, and adds the output to the input as it was (pre-norm)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B N D"], block: Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N D"]]
    ) -> Float[Tensor, "B N D"]:
        """Apply `block` on the residual path."""
        return x + self.dropout(block(self.norm(x)))


ResidualType = type[Residual] | type[PreNormResidual]
"""Where the layers of a transformer normalise."""


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them, for each token alone."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        widen, narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.xavier_uniform_(widen.weight)
        nn.init.xavier_uniform_(narrow.weight)
        super().__init__(widen, nn.ReLU(), nn.Dropout(dropout), narrow)
