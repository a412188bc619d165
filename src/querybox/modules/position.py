"""Positional encodings: what tells the transformer where a feature cell lies."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.structures import Memory


def sine_features(
    positions: Float[Tensor, "*shape"], count: int, temperature: float
) -> Float[Tensor, "*shape {count}"]:
    """Return sines and cosines, interleaved, of `positions` (radians) at `count` / 2 geometric frequencies.

    "Attention Is All You Need", section 3.5, applied to one axis.
    """
    pairs = torch.arange(count // 2, dtype=positions.dtype, device=positions.device)
    angles = positions[..., None] / temperature ** (2 * pairs / count)  # [..., count / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sine_boxes(boxes: Float[Tensor, "B Q R"], width: int) -> Float[Tensor, "B Q _"]:
    """Encode each number, 0-1, of boxes (R = 4) or points (R = 2) by `width` / 2 features."""
    return sine_features(2 * math.pi * boxes, width // 2, 10000.0).flatten(2)


class SinePositionEncoding(nn.Module):
    """Fixed encoding: half the features for y, then half for x, over the unpadded part of the image.

    DETR, appendix A.4. Cells are counted from 1 along each axis, padding not counted, and divided by the count at
    the last cell, so that the encoding is relative to the unpadded image.
    """

    def __init__(
        self,
        width: int,
        *,
        temperature: float = 10000.0,
        cycles: float = 1.0,
        offset: float = 0.0,
        amplitude: float = 1.0,
    ) -> None:
        """Choose the frequencies; the defaults are the paper's.

        Args:
            width: Features of a cell, D.
            temperature: How much lower the lowest frequency is than the highest.
            cycles: How often the highest frequency goes round from one edge of the image to the other.
            offset: Added to a cell's count: -0.5 encodes the middle of a cell instead of its far edge.
            amplitude: Of the sines, beside features of about 1.
        """
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.cycles = cycles
        self.offset = offset
        self.amplitude = amplitude

    def forward(self, padding_mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Encode every cell; `padding_mask` is True where padded."""
        valid = (~padding_mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)  # [B, h, w]
        y = 2 * math.pi * (y + self.offset) / (y[:, -1:, :] + 1e-6)
        x = 2 * math.pi * (x + self.offset) / (x[:, :, -1:] + 1e-6)
        return self.encode(y, x).permute(0, 3, 1, 2)  # [B, D, h, w]

    def encode(self, y: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Encode places given in radians: 0 - 2 pi from one edge of the image to the other."""
        parts = [sine_features(self.cycles * axis, self.width // 2, self.temperature) for axis in (y, x)]
        return self.amplitude * torch.cat(parts, dim=-1)


class LearnedPositionEncoding(nn.Module):
    """One learned vector a column and one a row, up to `limit` cells a side; padding is not looked at.

    Columns first and 50 of each, as the published models have it.
    """

    def __init__(self, width: int, limit: int = 50) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(limit, width // 2))
        self.columns = nn.Parameter(torch.rand(limit, width // 2))

    def forward(self, padding_mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Encode every cell of a map of this size.

        Raises:
            ValueError: The map has more cells a side than `limit`.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > len(self.rows):
            raise ValueError(
                f"learned positional encoding: the feature map is {height}x{width} cells, at most "
                f"{len(self.rows)} a side are learned; use smaller images, a larger stride, or position='sine'"
            )
        y = self.rows[:height, None].expand(-1, width, -1)
        x = self.columns[None, :width].expand(height, -1, -1)
        return torch.cat([x, y], dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)  # [B, D, h, w]


class SinePosition(nn.Module):
    """Makes a query's position of the box where it looks (DAB-DETR, section 4.1; DINO)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.width = width

    def forward(self, reference: Float[Tensor, "B Q 4"], memory: Memory) -> Float[Tensor, "B Q D"]:
        """Encode the boxes, in 0-1 of the padded image, as DINO has it; y before x."""
        assert memory.levels is not None
        boxes = reference * memory.levels.valid_ratios[:, :1].repeat(1, 1, 2)
        return self.layers(sine_boxes(boxes[..., [1, 0, 2, 3]], self.width))


def fine_encoding(width: int) -> SinePositionEncoding:
    """Return an encoding that tells neighbouring cells apart, and outweighs what is seen there."""
    return SinePositionEncoding(width, temperature=20.0, cycles=6.0, offset=-0.5, amplitude=3.0)
