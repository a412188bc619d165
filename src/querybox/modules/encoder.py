"""The encoder: every feature cell looks at every other one, and the image becomes memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.structures import Memory


def shrink_mask(
    padding_mask: Bool[Tensor, "B H W"], size: torch.Size | tuple[int, int]
) -> Bool[Tensor, "B h w"]:
    """Bring the padding mask to the size of a feature map, by nearest interpolation."""
    return F.interpolate(padding_mask[:, None].float(), size=list(size)).bool()[:, 0]


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, *, norm_first: bool) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.self_attention_residual = Residual(width, dropout, norm_first=norm_first)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = Residual(width, dropout, norm_first=norm_first)

    def forward(
        self,
        tokens: Float[Tensor, "B S D"],
        position: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        """Refine the tokens. The position says where to look (query, key), never what is seen (value)."""
        tokens = self.self_attention_residual(
            tokens, lambda x: self.self_attention(x + position, x + position, x, padding_mask)
        )
        return self.feedforward_residual(tokens, self.feedforward)


class Encoder(nn.Module):
    """Adds position to the features of one level and runs the encoder layers."""

    def __init__(
        self,
        position: nn.Module,
        *,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.position = position
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout, norm_first=norm_first) for _ in range(layers)
        )
        # Pre-norm layers leave their sum unnormalised.
        self.norm = nn.LayerNorm(width) if norm_first else nn.Identity()

    def forward(
        self, features: list[Float[Tensor, "B D h w"]], padding_mask: Bool[Tensor, "B H W"]
    ) -> Memory:
        """Turn one feature map into memory; `padding_mask` is that of the images, True = padding."""
        (feature,) = features
        padding_mask = shrink_mask(padding_mask, feature.shape[-2:])  # [B, h, w]
        position = self.position(padding_mask).flatten(2).transpose(1, 2)  # [B, S, D]
        tokens = feature.flatten(2).transpose(1, 2)  # [B, S, D]
        padding_mask = padding_mask.flatten(1)  # [B, S]
        for layer in self.layers:
            tokens = layer(tokens, position, padding_mask)
        return Memory(tokens=self.norm(tokens), position=position, padding_mask=padding_mask)
