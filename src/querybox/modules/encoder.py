"""The encoder: feature cells look at one another, and the image becomes memory.

In DETR every cell attends to every other one; in Deformable DETR (section 4.1) every cell of several maps attends to a
few points around its own place in all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual, ResidualType
from querybox.modules.deformable_attention import DeformableAttention
from querybox.structures import Cells, Levels, Memory


def shrink_mask(
    padding_mask: Bool[Tensor, "B H W"], size: torch.Size | tuple[int, int]
) -> Bool[Tensor, "B h w"]:
    """Bring the padding mask to the size of a feature map, by nearest interpolation."""
    return F.interpolate(padding_mask[:, None].float(), size=list(size)).bool()[:, 0]


def shrink_masks(
    padding_mask: Bool[Tensor, "B H W"], features: list[Float[Tensor, "B D _ _"]]
) -> list[Bool[Tensor, "B _ _"]]:
    """Bring the padding mask to the size of each feature map."""
    return [shrink_mask(padding_mask, feature.shape[-2:]) for feature in features]


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward network."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        residual: ResidualType = Residual,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.self_attention_residual = residual(width, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = residual(width, dropout)

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
        residual: ResidualType = Residual,
        norm: nn.Module | None = None,
    ) -> None:
        """Compose it.

        Args:
            position: Encodes the positions of the cells.
            layers: How many.
            width: Features of a token, D.
            heads: Of self-attention.
            feedforward: Hidden features of the feed-forward network.
            dropout: Share of values that is dropped in training.
            residual: Where layers normalise.
            norm: Of the memory; None: post-norm layers have normalised it already.
        """
        super().__init__()
        self.position = position
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout, residual=residual) for _ in range(layers)
        )
        self.norm = norm or nn.Identity()

    def forward(
        self,
        features: list[Float[Tensor, "B D h w"]],
        padding_mask: Bool[Tensor, "B H W"],
        cells: Cells | None = None,
    ) -> Memory:
        """Turn one feature map into memory.

        Args:
            features: The map.
            padding_mask: Of the images, True = padding.
            cells: What `locate` returns for the map and the mask; None: `locate` is called.
        """
        (feature,) = features
        cells = cells or self.locate(shrink_masks(padding_mask, features))
        tokens = flat(feature)  # [B, S, D]
        for layer in self.layers:
            tokens = layer(tokens, cells.position, cells.padding_mask)
        return Memory(tokens=self.norm(tokens), position=cells.position, padding_mask=cells.padding_mask)

    def locate(self, masks: list[Bool[Tensor, "B _ _"]]) -> Cells:
        """Describe the cells of the map that has this padding mask (True = padding); nothing else enters."""
        (mask,) = masks
        return Cells(position=flat(self.position(mask)), padding_mask=mask.flatten(1))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention around each cell, then the feed-forward network."""

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = DeformableAttention(width, heads, levels, points)
        self.self_attention_residual = Residual(width, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = Residual(width, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B S D"],
        position: Float[Tensor, "B S D"],
        reference: Float[Tensor, "B S 2"],
        levels: Levels,
    ) -> Float[Tensor, "B S D"]:
        """Refine the tokens."""
        tokens = self.self_attention_residual(
            tokens, lambda x: self.self_attention(x + position, reference, x, levels)
        )
        return self.feedforward_residual(tokens, self.feedforward)


class DeformableEncoder(nn.Module):
    """Every cell of every map looks at a few points around its own place in all maps."""

    def __init__(
        self, position: nn.Module, layers: list[DeformableEncoderLayer], *, width: int, levels: int
    ) -> None:
        super().__init__()
        self.position = position
        self.level = nn.Parameter(torch.randn(levels, width))
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        features: list[Float[Tensor, "B D _ _"]],
        padding_mask: Bool[Tensor, "B H W"],
        cells: Cells | None = None,
    ) -> Memory:
        """Turn feature maps into memory, one map's cells after the other's; see `Encoder.forward`."""
        cells = cells or self.locate(shrink_masks(padding_mask, features))
        tokens = torch.cat([flat(feature) for feature in features], 1)  # [B, S, D]
        for layer in self.layers:
            tokens = layer(tokens, cells.position, cells.reference, cells.levels)
        return Memory(
            tokens=tokens, position=cells.position, padding_mask=cells.padding_mask, levels=cells.levels
        )

    def locate(self, masks: list[Bool[Tensor, "B _ _"]]) -> Cells:
        """Describe the cells of the maps that have these padding masks (True = padding); nothing else enters."""
        position = [flat(self.position(mask)) + name for mask, name in zip(masks, self.level, strict=True)]
        levels = levels_of(masks)
        return Cells(
            position=torch.cat(position, 1),
            padding_mask=levels.padding_mask,
            reference=cell_centres(levels),
            levels=levels,
        )


def flat(feature: Float[Tensor, "B D h w"]) -> Float[Tensor, "B S D"]:
    """Return the cells of a map as tokens, row by row."""
    return feature.flatten(2).transpose(1, 2)


def levels_of(masks: list[Bool[Tensor, "B _ _"]]) -> Levels:
    """Describe the maps that these padding masks (True = padding) belong to."""
    shapes = tuple((mask.shape[1], mask.shape[2]) for mask in masks)
    valid = [
        torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], 1) for mask in masks
    ]
    return Levels(
        shapes=shapes,
        # non_blocking: a GPU is not waited for.
        sizes=torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32).to(
            masks[0].device, non_blocking=True
        ),
        valid_ratios=torch.stack(valid, 1),
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], 1),
    )


def cell_centres(levels: Levels) -> Float[Tensor, "B S 2"]:
    """Return the middle (x, y) of every cell, in 0-1 of the unpadded image; beyond 1 where padded."""
    device = levels.valid_ratios.device
    places = []
    for (height, width), size, valid in zip(
        levels.shapes, levels.sizes, levels.valid_ratios.unbind(1), strict=True
    ):
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        xy = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)  # [h w, 2]
        places.append((xy + 0.5) / (size * valid)[:, None])
    return torch.cat(places, 1)
