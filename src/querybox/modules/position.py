"""Positional encodings of feature cells and boxes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.errors import ConfigError
from querybox.structures import Memory


def sine_features(
    positions: Float[Tensor, "*shape"], count: int, temperature: float
) -> Float[Tensor, "*shape {count}"]:
    """Return interleaved sines and cosines of `positions` (radians) at `count` / 2 geometrically spaced frequencies.

    "Attention Is All You Need", section 3.5, applied to one axis.
    """
    pairs = torch.arange(count // 2, dtype=positions.dtype, device=positions.device)
    angles = positions[..., None] / temperature ** (2 * pairs / count)  # [..., count / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sine_boxes(boxes: Float[Tensor, "B Q R"], width: int) -> Float[Tensor, "B Q _"]:
    """Encode each coordinate (0-1) of boxes (R = 4) or points (R = 2) with `width` / 2 features."""
    return sine_features(2 * math.pi * boxes, width // 2, 10000.0).flatten(2)


class SinePositionEncoding(nn.Module):
    """Sine encoding of DETR (appendix A.4): half of the features for y, then half for x.

    Cells are counted from 1 along each axis without padding, and divided by the count at the last cell, so the
    encoding is relative to the unpadded image.
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
        """Set the frequencies; the defaults are those of the paper.

        Args:
            width: Features of a cell, D.
            temperature: Ratio of the highest to the lowest frequency.
            cycles: Cycles of the highest frequency across the image.
            offset: Added to the count of each cell: -0.5 encodes the centre of a cell instead of its far edge.
            amplitude: Amplitude of the sines; image features are of the order of 1.
        """
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.cycles = cycles
        self.offset = offset
        self.amplitude = amplitude

    def forward(self, padding_mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Encode every cell; `padding_mask` is True for padding."""
        valid = (~padding_mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)  # [B, h, w]
        y = self.relative(y, y[:, -1:, :])
        x = self.relative(x, x[:, :, -1:])
        return self.encode(y, x).permute(0, 3, 1, 2)  # [B, D, h, w]

    def relative(
        self, count: Float[Tensor, "B h w"], total: Float[Tensor, "B _ _"]
    ) -> Float[Tensor, "B h w"]:
        """Return positions in radians, 0 to 2 pi, given the count at each cell and at the last one.

        In a row or column of padding alone both are 0. Divided by 1e-6, the offset would have a position so large that
        its sines are rounding errors.
        """
        return 2 * math.pi * (count + self.offset) / (total.clamp(min=1) + 1e-6)

    def encode(self, y: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
        """Encode positions in radians, 0 to 2 pi from one edge of the image to the other."""
        parts = [sine_features(self.cycles * axis, self.width // 2, self.temperature) for axis in (y, x)]
        return self.amplitude * torch.cat(parts, dim=-1)


class LearnedPositionEncoding(nn.Module):
    """Learned encoding: a vector per column and one per row, for up to `limit` cells per side; ignores padding.

    The features of the column come first, and `limit` is 50, as in the published models.
    """

    def __init__(self, width: int, limit: int = 50) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(limit, width // 2))
        self.columns = nn.Parameter(torch.rand(limit, width // 2))

    def forward(self, padding_mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Encode every cell of a map with the shape of `padding_mask`.

        Raises:
            ConfigError: The map has more cells per side than `limit`.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > len(self.rows):
            raise ConfigError(
                f"learned positional encoding: the feature map has {height}x{width} cells, expected at most "
                f"{len(self.rows)} per side; use smaller images: lower short_side and long_side of the detector's "
                "preprocessing, or train a model with position='sine'"
            )
        y = self.rows[:height, None].expand(-1, width, -1)
        x = self.columns[None, :width].expand(height, -1, -1)
        return torch.cat([x, y], dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)  # [B, D, h, w]


class CellPositionEncoding(nn.Module):
    """Sine encoding of the indices of cells, counted from 0 and not scaled to the image (RT-DETR).

    The features are the sines of y, the cosines of y, the sines of x and the cosines of x, at `width` / 4 geometrically
    spaced frequencies.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, padding_mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B D h w"]:
        """Encode every cell of a map with the shape of `padding_mask`."""
        batch, height, width = padding_mask.shape
        count, device = self.width // 4, padding_mask.device
        index = torch.arange(count, device=device, dtype=torch.float32)
        frequencies = 10000.0 ** (-index / count)  # [D / 4]
        y = torch.arange(height, device=device)[:, None, None] * frequencies  # [h, 1, D / 4]
        x = torch.arange(width, device=device)[:, None] * frequencies  # [w, D / 4]
        parts = [each.expand(height, width, -1) for each in (y.sin(), y.cos(), x.sin(), x.cos())]
        return torch.cat(parts, dim=-1).permute(2, 0, 1).expand(batch, -1, -1, -1)  # [B, D, h, w]


class BoxPosition(nn.Module):
    """Computes the positional embedding of a query from the coordinates of its reference box (RT-DETR)."""

    def __init__(self, *widths: int, activation: type[nn.Module] = nn.ReLU) -> None:
        """Create the embedding; `widths` are the outputs of its linear layers."""
        super().__init__()
        linears = [nn.Linear(*sizes) for sizes in pairwise((4, *widths))]
        for layer in linears:
            nn.init.xavier_uniform_(layer.weight)
        hidden = (module for layer in linears[:-1] for module in (layer, activation()))
        self.layers = nn.Sequential(*hidden, linears[-1])

    def forward(
        self,
        reference: Float[Tensor, "B Q 4"],
        memory: Memory,  # noqa: ARG002 - as `SinePosition`
    ) -> Float[Tensor, "B Q D"]:
        """Return the embeddings."""
        embedding: Tensor = self.layers(reference)
        return embedding


class SinePosition(nn.Module):
    """Computes the positional embedding of a query from its reference box (DAB-DETR, section 4.1; DINO)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.width = width

    def forward(self, reference: Float[Tensor, "B Q 4"], memory: Memory) -> Float[Tensor, "B Q D"]:
        """Encode the reference boxes, converted to 0-1 of the padded image and with y before x as in DINO."""
        assert memory.levels is not None
        boxes = reference * memory.levels.valid_ratios[:, :1].repeat(1, 1, 2)
        x, y, width, height = boxes.split(1, -1)  # a list as index would make the host wait for a GPU
        return self.layers(sine_boxes(torch.cat([y, x, width, height], -1), self.width))


def fine_encoding(width: int) -> SinePositionEncoding:
    """Return an encoding that distinguishes neighbouring cells, with a larger amplitude than the image features."""
    return SinePositionEncoding(width, temperature=20.0, cycles=6.0, offset=-0.5, amplitude=3.0)
