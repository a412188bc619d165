"""DETR's own mask head, which convolves attention maps of each query (Carion et al. 2020, section 4.2, figure 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querybox.mask_embeddings import MASK_STRIDE, ComputedMasks, sample
from querybox.structures import Memory, Predictions

GROUPS = 8
"""Groups of channels that are normalised together."""
QUERIES_AT_ONCE = 10
"""Number of queries whose masks are computed together, which bounds the memory: 0.3 GB for an image at full size."""


class AttentionMaskHead(nn.Module):
    """Predicts the mask of each query from where it attends to in the encoder's output.

    Attention maps of several heads are concatenated with the projected feature map. Convolutions enlarge them, and at
    each step a finer map of the backbone is added, as in a feature pyramid. Only the last decoder layer has masks.
    """

    strides: ClassVar[tuple[int, ...]] = (MASK_STRIDE, 8, 16)
    """Strides of the backbone's maps that the head is given."""

    def __init__(self, channels: Sequence[int], width: int, heads: int) -> None:
        """Create the head.

        Args:
            channels: Channels of the backbone's maps with these `strides`.
            width: Features of a token and of a query, D, a multiple of 16 `GROUPS`.
            heads: Number of attention maps, a multiple of `GROUPS`.
        """
        super().__init__()
        self.attention_map = AttentionMap(width, heads)
        widths = [width + heads, width + heads, width // 2, width // 4, width // 8, width // 16]
        self.blocks = nn.ModuleList(NormalizedConv(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.laterals = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel_size=1)
            for inputs, outputs in zip(reversed(channels), widths[2:-1], strict=True)
        )
        self.output = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(
        self,
        layers: tuple[Predictions, ...],
        maps: list[Float[Tensor, "B _ _ _"]],
        features: list[Float[Tensor, "B D _ _"]],
        memory: Memory,
    ) -> tuple[Predictions, ...]:
        """Return the predictions of every layer, the last one with masks.

        Args:
            layers: Predictions of every layer.
            maps: The backbone's maps with these `strides`.
            features: The feature map that the encoder was given.
            memory: The output of the encoder.
        """
        (feature,), content = features, layers[-1].content
        assert content is not None
        masks = AttentionMasks(
            head=self,
            content=content,
            keys=self.attention_map.key(memory.tokens),
            padding_mask=memory.padding_mask,
            feature=feature,
            laterals=tuple(
                lateral(each) for lateral, each in zip(self.laterals, reversed(maps), strict=True)
            ),
        )
        return (*layers[:-1], replace(layers[-1], masks=masks))

    def logits(self, masks: AttentionMasks, content: Float[Tensor, "B K D"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of queries.

        Args:
            masks: What the head was given.
            content: Content of the queries.
        """
        queries = content.shape[:2]
        attention = self.attention_map(content, masks.keys, masks.padding_mask)  # [B, K, heads, S]
        feature = masks.feature[:, None].expand(-1, queries[1], -1, -1, -1)  # [B, K, D, _, _]
        x = torch.cat([feature, attention.unflatten(3, feature.shape[3:])], 2).flatten(0, 1)
        first, second, *others = self.blocks
        x = second(first(x))
        for block, lateral in zip(others, masks.laterals, strict=True):
            x = F.interpolate(x, size=lateral.shape[2:]).unflatten(0, queries)
            x = block((lateral[:, None] + x).flatten(0, 1))
        logits: Tensor = self.output(x)
        return logits[:, 0].unflatten(0, queries)


class AttentionMap(nn.Module):
    """Attention weights of queries, normalised over all heads and tokens together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        for projection in (self.query, self.key):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        content: Float[Tensor, "B K D"],
        keys: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B K heads S"]:
        """Return the weights, whose sum is 1 for each query.

        Args:
            content: Content of the queries.
            keys: Projected tokens.
            padding_mask: Tokens of weight 0 (True = padding); None if nothing is padded.
        """
        query, key = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.query(content), keys))
        scores = query / query.shape[3] ** 0.5 @ key.to(query.dtype).transpose(2, 3)  # [B, heads, K, S]
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None, None], float("-inf"))
        scores = scores.transpose(1, 2)  # [B, K, heads, S]
        return scores.flatten(2).softmax(2).unflatten(2, scores.shape[2:])


class NormalizedConv(nn.Sequential):
    """3x3 convolution, group norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        super().__init__(conv, nn.GroupNorm(GROUPS, outputs), nn.ReLU())


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMasks(ComputedMasks):
    """Inputs of the head, from which it computes the masks of those queries whose masks are needed."""

    head: AttentionMaskHead
    content: Float[Tensor, "B Q D"]
    """Content of the queries."""
    keys: Float[Tensor, "B S D"]
    """Projected tokens of the encoder's output."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None if nothing is padded."""
    feature: Float[Tensor, "B D _ _"]
    """The feature map that the encoder was given."""
    laterals: tuple[Float[Tensor, "B _ _ _"], ...]
    """The backbone's maps, projected, coarse to fine."""

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        content = self.content.gather(1, query[..., None].expand(-1, -1, self.content.shape[2]))
        return torch.cat([self.head.logits(self, part) for part in content.split(QUERIES_AT_ONCE, 1)], 1)

    def of_queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""
        return replace(self, content=self.content[:, index])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""
        return self.laterals[-1].shape[2], self.laterals[-1].shape[3]

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `ComputedMasks.at_points`."""
        for image, query in enumerate(queries):
            logits = [
                layer.of_image(image).logits(rows[None]) for layer, rows in zip(layers, query, strict=True)
            ]
            yield sample(torch.cat(logits), points[image].expand(len(layers), -1, -1))

    def of_image(self, index: int) -> Self:
        """Return the masks of one image."""
        image = slice(index, index + 1)
        return replace(
            self,
            content=self.content[image],
            keys=self.keys[image],
            padding_mask=None if self.padding_mask is None else self.padding_mask[image],
            feature=self.feature[image],
            laterals=tuple(each[image] for each in self.laterals),
        )
