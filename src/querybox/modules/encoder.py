"""The encoder: self-attention among the cells of the feature maps.

In DETR every cell attends to every other one. In Deformable DETR (section 4.1) every cell of several maps attends to a
few points around its own position in all maps.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.levels import Cells, Levels
from querybox.modules.attention import Attention
from querybox.modules.blocks import FeedForward, Residual
from querybox.modules.deformable_attention import DeformableAttention
from querybox.structures import Memory


def shrink_mask(
    padding_mask: Bool[Tensor, "B H W"], size: torch.Size | tuple[int, int]
) -> Bool[Tensor, "B h w"]:
    """Resize the padding mask to the size of a feature map by nearest-neighbour interpolation.

    As `F.interpolate`, but with integers: other runtimes divide by an inexact scale, and differ where an image ends
    between two cells.
    """
    for axis, count in enumerate(size, start=1):
        places = torch.arange(count, device=padding_mask.device) * padding_mask.shape[axis] // count
        padding_mask = padding_mask.index_select(axis, places)
    return padding_mask


def shrink_masks(
    padding_mask: Bool[Tensor, "B H W"], features: list[Float[Tensor, "B D _ _"]]
) -> list[Bool[Tensor, "B _ _"]]:
    """Resize the padding mask to the size of each feature map."""
    return [shrink_mask(padding_mask, feature.shape[-2:]) for feature in features]


class EncoderLayer(nn.Module):
    """Self-attention, then a feed-forward network."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        *,
        residual: type[Residual] = Residual,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.self_attention_residual = residual(width, dropout)
        self.feedforward = FeedForward(width, feedforward, dropout, activation=activation)
        self.feedforward_residual = residual(width, dropout)

    def forward(
        self,
        tokens: Float[Tensor, "B S D"],
        position: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        """Return the updated tokens. Positions are added to queries and keys, not to values."""
        tokens = self.self_attention_residual(
            tokens, lambda x: self.self_attention(x + position, x + position, x, padding_mask)
        )
        return self.feedforward_residual(tokens, self.feedforward)


class Encoder(nn.Module):
    """Encoder of DETR, for a single feature map."""

    def __init__(
        self,
        position: nn.Module,
        *,
        layers: int,
        width: int,
        heads: int,
        feedforward: int,
        dropout: float,
        residual: type[Residual] = Residual,
        norm: nn.Module | None = None,
    ) -> None:
        """Create the layers.

        Args:
            position: Positional encoding of the cells.
            layers: Number of layers.
            width: Features of a token, D.
            heads: Attention heads.
            feedforward: Hidden features of the feed-forward network.
            dropout: Dropout probability.
            residual: Residual connection of the layers, post-norm or pre-norm.
            norm: Final norm; None for post-norm layers, whose output is already normalised.
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
        """Encode one feature map.

        Args:
            features: The feature map.
            padding_mask: Padding mask of the images, True = padding.
            cells: The result of `locate` for this map and mask; None to compute it.
        """
        (feature,) = features
        cells = cells or self.locate(shrink_masks(padding_mask, features))
        tokens = to_tokens(feature)  # [B, S, D]
        for layer in self.layers:
            tokens = layer(tokens, cells.position, cells.padding_mask)
        return Memory(tokens=self.norm(tokens), position=cells.position, padding_mask=cells.padding_mask)

    def locate(self, masks: list[Bool[Tensor, "B _ _"]]) -> Cells:
        """Return positions and masks of the cells, which depend only on the map's padding mask (True = padding)."""
        (mask,) = masks
        return Cells(position=to_tokens(self.position(mask)), padding_mask=mask.flatten(1))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention around each cell, then a feed-forward network."""

    def __init__(
        self, width: int, heads: int, points: tuple[int, ...], feedforward: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = DeformableAttention(width, heads, points)
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
        """Return the updated tokens."""
        tokens = self.self_attention_residual(
            tokens, lambda x: self.self_attention(x + position, reference, x, levels)
        )
        return self.feedforward_residual(tokens, self.feedforward)


class DeformableEncoder(nn.Module):
    """Encoder of Deformable DETR: each cell of each map attends to a few points around its position in all maps."""

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
        """Encode feature maps, whose cells are concatenated in the memory; see `Encoder.forward`."""
        cells = cells or self.locate(shrink_masks(padding_mask, features))
        tokens = torch.cat([to_tokens(feature) for feature in features], 1)  # [B, S, D]
        for layer in self.layers:
            tokens = layer(tokens, cells.position, cells.reference, cells.levels)
        return Memory(
            tokens=tokens, position=cells.position, padding_mask=cells.padding_mask, levels=cells.levels
        )

    def locate(self, masks: list[Bool[Tensor, "B _ _"]]) -> Cells:
        """Return positions, references and levels, which depend only on the maps' padding masks (True = padding)."""
        position = [
            to_tokens(self.position(mask)) + level for mask, level in zip(masks, self.level, strict=True)
        ]
        levels = levels_from_masks(masks)
        return Cells(
            position=torch.cat(position, 1),
            padding_mask=levels.padding_mask,
            reference=cell_centres(levels),
            levels=levels,
        )


def to_tokens(feature: Float[Tensor, "B D h w"]) -> Float[Tensor, "B S D"]:
    """Return the cells of a feature map as tokens, row by row.

    The gradient of a single map is made contiguous: on CPUs, the batch norm before it would otherwise have wrong
    gradients (PyTorch 2.14, unless the map is channels last).
    """
    if feature.requires_grad and len(feature) == 1:
        feature.register_hook(Tensor.contiguous)
    return feature.flatten(2).transpose(1, 2)


def levels_from_masks(masks: list[Bool[Tensor, "B _ _"]]) -> Levels:
    """Return the `Levels` of the feature maps with these padding masks (True = padding)."""
    shapes = tuple((mask.shape[1], mask.shape[2]) for mask in masks)
    valid_ratios = [
        torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], 1) for mask in masks
    ]
    return Levels(
        shapes=shapes,
        # non_blocking, so that the host does not wait for a GPU.
        sizes=torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32, device="cpu").to(
            masks[0].device, non_blocking=True
        ),
        valid_ratios=torch.stack(valid_ratios, 1),
        padding_mask=torch.cat([mask.flatten(1) for mask in masks], 1),
    )


def cell_centres(levels: Levels) -> Float[Tensor, "B S 2"]:
    """Return the centre (x, y) of every cell, in 0-1 of the unpadded image; above 1 in padding."""
    device = levels.valid_ratios.device
    centres = []
    for (height, width), size, valid_ratio in zip(
        levels.shapes, levels.sizes, levels.valid_ratios.unbind(1), strict=True
    ):
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        xy = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], -1)  # [h, w, 2]
        centres.append((xy.flatten(0, 1).to(size) + 0.5) / (size * valid_ratio)[:, None])
    return torch.cat(centres, 1)
