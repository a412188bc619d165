"""The encoder over several feature maps at once, and the neck that makes them alike (Deformable DETR, section 4.1)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.deformable import DeformableAttention
from querybox.modules.encoder import shrink_mask
from querybox.structures import Levels, Memory


class PyramidProjection(nn.Module):
    """One 1x1 convolution a map, then coarser maps by 3x3 convolutions of stride 2, each with a group norm."""

    def __init__(self, channels: list[int], width: int, levels: int) -> None:
        super().__init__()
        extra = [channels[-1], *[width] * levels][: levels - len(channels)]
        convolutions = [nn.Conv2d(count, width, kernel_size=1) for count in channels]
        convolutions += [nn.Conv2d(count, width, kernel_size=3, stride=2, padding=1) for count in extra]
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
        self.projections = nn.ModuleList(
            nn.Sequential(convolution, nn.GroupNorm(32, width)) for convolution in convolutions
        )

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B D _ _"]]:
        """Return maps of D channels, fine to coarse."""
        maps: list[Tensor] = []
        for level, projection in enumerate(self.projections):
            # The first coarser map is made of the backbone's last one, the next of the one before.
            source = features[level] if level < len(features) else [*features, *maps[len(features) :]][-1]
            maps.append(projection(source))
        return maps


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention around each cell, then the feed-forward network."""

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = DeformableAttention(width, heads, levels, points)
        self.self_attention_residual = Residual(width, dropout, norm_first=False)
        self.feedforward = FeedForward(width, feedforward, dropout)
        self.feedforward_residual = Residual(width, dropout, norm_first=False)

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
        self, features: list[Float[Tensor, "B D _ _"]], padding_mask: Bool[Tensor, "B H W"]
    ) -> Memory:
        """Turn feature maps into memory, one map's cells after the other's."""
        masks = [shrink_mask(padding_mask, feature.shape[-2:]) for feature in features]
        position = [flat(self.position(mask)) + name for mask, name in zip(masks, self.level, strict=True)]
        levels = levels_of(masks)
        reference = cell_centres(levels)
        tokens, positions = torch.cat([flat(feature) for feature in features], 1), torch.cat(position, 1)
        for layer in self.layers:
            tokens = layer(tokens, positions, reference, levels)
        return Memory(tokens=tokens, position=positions, padding_mask=levels.padding_mask, levels=levels)


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
        sizes=torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device=masks[0].device),
        valid=torch.stack(valid, 1),
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], 1),
    )


def cell_centres(levels: Levels) -> Float[Tensor, "B S 2"]:
    """Return the middle (x, y) of every cell, in 0-1 of the unpadded image; beyond 1 where padded."""
    device = levels.valid.device
    places = []
    for (height, width), size, valid in zip(levels.shapes, levels.sizes, levels.valid.unbind(1), strict=True):
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        xy = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)  # [h w, 2]
        places.append((xy + 0.5) / (size * valid)[:, None])
    return torch.cat(places, 1)
