"""Residual connections and feed-forward networks of transformer layers, and convolutions with a batch norm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

Block = Callable[[Float[Tensor, "B N D"]], Float[Tensor, "B N D"]]
"""Computes what a residual connection adds to tokens."""


class Residual(nn.Module):
    """Residual connection that normalises the sum of a block's input and output (post-norm)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B N D"], block: Block) -> Float[Tensor, "B N D"]:
        """Return the norm of `x` plus the output of `block`."""
        return self.norm(x + self.dropout(block(x)))


class PreNormResidual(Residual):
    """Residual connection that normalises the input of a block, but not the sum (pre-norm)."""

    def forward(self, x: Float[Tensor, "B N D"], block: Block) -> Float[Tensor, "B N D"]:
        """Return `x` plus the output of `block`, applied to the norm of `x`."""
        return x + self.dropout(block(self.norm(x)))


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and activation; keeps the size of the map, or divides it by `stride`."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: type[nn.Module] = nn.SiLU,
    ) -> None:
        padding = kernel_size // 2
        conv = nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs), activation=activation()))


class FeedForward(nn.Sequential):
    """Feed-forward network: two linear layers with an activation between them, applied to each token."""

    def __init__(
        self, width: int, hidden: int, dropout: float, *, activation: type[nn.Module] = nn.ReLU
    ) -> None:
        expand, contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.xavier_uniform_(expand.weight)
        nn.init.xavier_uniform_(contract.weight)
        super().__init__(expand, activation(), nn.Dropout(dropout), contract)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a linear layer whose output is initially zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
