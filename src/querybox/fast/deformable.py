"""Deformable encoder, attention and decoder for inference: constants kept, nothing done for absent padding."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn

from querybox.fast.transformer import SIZES, fuse_linear
from querybox.modules.decoder import ReferenceDecoder, move
from querybox.modules.deformable_attention import DeformableAttention
from querybox.modules.encoder import DeformableEncoder, cell_centres, flat, levels_of, shrink_mask
from querybox.structures import Levels, Memory, Predictions, Queries, Shapes


def quicken_attention(part: nn.Module) -> None:
    """Make the deformable attention in `part` fast, in place, and fuse the linear layers."""
    for module in part.modules():
        if isinstance(module, DeformableAttention):
            module.__class__ = FastDeformableAttention
    fuse_linear(part)


class FastDeformableAttention(DeformableAttention):
    """Looks by way of a table, in float32 whatever the type of the tokens."""

    def look(
        self,
        value: Float[Tensor, "B S D"],
        levels: Levels,
        places: Float[Tensor, "B Q heads L P 2"],
        weight: Float[Tensor, "B Q heads L P"],
    ) -> Float[Tensor, "B Q D"]:
        """Return what is seen at the places."""
        return sample(value.float(), levels, places, weight.float()).to(value.dtype)


def sample(
    value: Float[Tensor, "B S D"],
    levels: Levels,
    places: Float[Tensor, "B Q heads L P 2"],
    weight: Float[Tensor, "B Q heads L P"],
) -> Float[Tensor, "B Q D"]:
    """Do what `querybox.modules.deformable_attention.sample` does by one weighted sum of table rows."""
    table = bordered(value, levels.shapes, heads=weight.shape[2])
    rows, shares = corners(places, weight, levels, apart=table.shape[1])
    mixed = F.embedding_bag(
        rows.flatten(0, 2), table.flatten(0, 1), per_sample_weights=shares.flatten(0, 2), mode="sum"
    )  # [B Q heads, D / heads]
    return mixed.view(*weight.shape[:2], -1)


def bordered(value: Float[Tensor, "B S D"], shapes: Shapes, heads: int) -> Float[Tensor, "B N head_width"]:
    """Return a table an image, in which a cell of a head is a row.

    Maps get a border of zeros, so that nothing has to be done for points outside.
    """
    maps = value.split([h * w for h, w in shapes], dim=1)
    padded = [
        F.pad(cells.unflatten(1, shape), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for cells, shape in zip(maps, shapes, strict=True)
    ]
    return torch.cat(padded, 1).unflatten(2, (heads, -1)).flatten(1, 2)


def corners(
    places: Float[Tensor, "B Q heads L P 2"],
    weight: Float[Tensor, "B Q heads L P"],
    levels: Levels,
    *,
    apart: int,
) -> tuple[Int32[Tensor, "B Q heads K"], Float[Tensor, "B Q heads K"]]:
    """Return the table's rows of the four cells around each place, and how much each of them counts; K = 4 L P.

    Args:
        places: x, y; 0-1 of the padded map.
        weight: How much each place counts.
        levels: How the tokens make up the maps.
        apart: Rows from one image's table to the next one's; 0 where rows are counted from the image's own first.
    """
    batch, _, heads, _, points = weight.shape
    sizes = levels.sizes  # [L, 2]
    pitch = sizes[:, 0] + 2  # rows of a map are so many cells apart
    counts = (sizes + 2).prod(1)
    start = counts.cumsum(0) - counts + pitch + 1  # of each map's first cell in the table
    # One number a point, or two, side by side in memory: short axes are slow to broadcast along.
    pitch, start = pitch.repeat_interleave(points), start.repeat_interleave(points)  # [L P]
    sizes = sizes.repeat_interleave(points, 0).flatten()  # [L P 2]

    cells = (places.flatten(3) * sizes - 0.5).clamp(-torch.ones_like(sizes), sizes)  # [B, Q, heads, L P 2]
    # Whoever looks nowhere (NaN) is to see NaN, but in a row that there is.
    first = cells.detach().floor().minimum(sizes - 1).nan_to_num(nan=-1)
    left, top = first.unflatten(3, (-1, 2)).unbind(-1)  # [B, Q, heads, L P]
    right_share, low_share = (cells - first).unflatten(3, (-1, 2)).unbind(-1)
    image = torch.arange(batch, dtype=torch.int32, device=weight.device)[:, None, None, None]
    head = torch.arange(heads, dtype=torch.int32, device=weight.device)[:, None]
    row = (top * pitch + left + start).int() * heads + (image * apart + head)
    below = (pitch * heads).int()
    right = torch.full_like(below, heads)
    corner = torch.stack([torch.zeros_like(below), right, below, below + right])  # [4, L P]
    rows = (row[..., None, :] + corner).flatten(3)  # [B, Q, heads, 4 L P]

    weight = weight.flatten(3)
    low = weight * low_share
    high = weight - low
    high_right, low_right = high * right_share, low * right_share
    return rows, torch.cat([high - high_right, high_right, low - low_right, low_right], -1)


class FastDeformableEncoder(nn.Module):
    """Computes what `DeformableEncoder` computes, in the type of the features."""

    def __init__(self, encoder: DeformableEncoder, dtype: torch.dtype) -> None:
        """Take over the parts of `encoder`."""
        super().__init__()
        quicken_attention(encoder)
        self.position = encoder.position
        self.level = encoder.level
        self.layers = encoder.layers.to(dtype)
        self.dtype = dtype
        self.unpadded = lru_cache(maxsize=SIZES)(self.describe_unpadded)

    def forward(
        self, features: list[Float[Tensor, "B D _ _"]], padding_mask: Bool[Tensor, "B H W"] | None
    ) -> Memory:
        """Turn feature maps into memory; without `padding_mask` nothing is padded."""
        shapes: Shapes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
        batch, device = len(features[0]), features[0].device
        if padding_mask is None:
            position, reference, levels = self.unpadded(shapes, device)
            position, reference = position.expand(batch, -1, -1), reference.expand(batch, -1, -1)
            levels = replace(levels, valid=levels.valid.expand(batch, -1, -1))
        else:
            masks = [shrink_mask(padding_mask, feature.shape[-2:]) for feature in features]
            position, reference, levels = self.describe(masks)
        tokens = torch.cat([flat(feature) for feature in features], 1)  # [B, S, D]
        for layer in self.layers:
            tokens = layer(tokens, position, reference, levels)
        return Memory(tokens=tokens, position=position, padding_mask=levels.padding_mask, levels=levels)

    def describe(
        self, masks: list[Bool[Tensor, "B _ _"]]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S 2"], Levels]:
        """Encode the place of every cell, find its middle, and describe the maps; masks are True where padded."""
        position = [flat(self.position(mask)) + name for mask, name in zip(masks, self.level, strict=True)]
        levels = levels_of(masks)
        return torch.cat(position, 1).to(self.dtype), cell_centres(levels), levels

    def describe_unpadded(
        self, shapes: Shapes, device: torch.device
    ) -> tuple[Float[Tensor, "1 S D"], Float[Tensor, "1 S 2"], Levels]:
        """Do the same for one image without padding."""
        masks = [torch.zeros(1, *shape, dtype=torch.bool, device=device) for shape in shapes]
        position, reference, levels = self.describe(masks)
        return position, reference, replace(levels, padding_mask=None)


class LastReferenceAnswer(nn.Module):
    """Computes what `ReferenceDecoder` computes, but only the last layer answers; its heads are in float32."""

    def __init__(self, decoder: ReferenceDecoder, dtype: torch.dtype) -> None:
        """Take over the parts of `decoder`."""
        super().__init__()
        quicken_attention(decoder.layers)
        decoder.layers.to(dtype)
        self.plain = decoder

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of the last layer."""
        plain, content, position, reference = self.plain, queries.content, queries.position, queries.reference
        assert reference is not None
        for index, layer in enumerate(plain.layers):
            if index and plain.refinement != "keep":
                # Without gradients to stop, both ways of refinement differ in the norm alone.
                seen = plain.norm(content.float()) if plain.refinement == "refine" else content.float()
                delta = plain.box_heads[(index - 1) % len(plain.box_heads)](seen)
                reference = move(reference, delta, plain.margin)
            if plain.position is not None:
                position = plain.position(reference, memory).to(content.dtype)
            content = layer(content, position, reference, queries, memory)
        answer = plain.norm(content.float())  # [B, Q, D]
        boxes = move(reference, plain.box_heads[-1](answer), plain.margin)
        return (Predictions(logits=plain.class_heads[-1](answer), boxes=boxes, no_object=False),)
