"""Encoder and decoder for inference: constants computed once, nothing done for padding that is not there."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from querybox.fast.convolution import FusedLinear
from querybox.modules.blocks import FeedForward
from querybox.modules.decoder import Decoder
from querybox.modules.encoder import Encoder, shrink_mask
from querybox.structures import Memory, Predictions, Queries

SIZES = 16
"""Sizes of feature maps whose positional encoding is kept, the latest ones: 14 MB for DETR R50 at full size."""


def fuse_linear(part: nn.Module) -> None:
    """Replace the linear layers in `part`."""
    for name, child in part.named_children():
        if isinstance(child, FeedForward):
            widen, narrow = (layer for layer in child if isinstance(layer, nn.Linear))
            setattr(part, name, nn.Sequential(FusedLinear(widen, relu=True), FusedLinear(narrow)))
        elif isinstance(child, nn.Linear):
            setattr(part, name, FusedLinear(child))
        else:
            fuse_linear(child)


class FastEncoder(nn.Module):
    """Computes what `Encoder` computes, in the type of the features."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        """Take over the parts of `encoder`."""
        super().__init__()
        fuse_linear(encoder)
        self.position = encoder.position
        self.layers = encoder.layers.to(dtype)
        self.norm = encoder.norm.to(dtype)
        self.dtype = dtype
        self.unpadded = lru_cache(maxsize=SIZES)(self.encode_unpadded)

    def forward(
        self, features: list[Float[Tensor, "B D h w"]], padding_mask: Bool[Tensor, "B H W"] | None
    ) -> Memory:
        """Turn one feature map into memory; without `padding_mask` nothing is padded."""
        (feature,) = features
        batch, _, height, width = feature.shape
        if padding_mask is None:
            position = self.unpadded(height, width, feature.device).expand(batch, -1, -1)  # [B, S, D]
        else:
            cells = shrink_mask(padding_mask, (height, width))
            position, padding_mask = self.encode(cells), cells.flatten(1)  # [B, S, D], [B, S]
        tokens = feature.flatten(2).transpose(1, 2)  # [B, S, D]
        return Memory(
            tokens=self.refine(tokens, position, padding_mask), position=position, padding_mask=padding_mask
        )

    def refine(
        self,
        tokens: Float[Tensor, "B S D"],
        position: Float[Tensor, "B S D"],
        padding_mask: Bool[Tensor, "B S"] | None,
    ) -> Float[Tensor, "B S D"]:
        """Run the layers."""
        for layer in self.layers:
            tokens = layer(tokens, position, padding_mask)
        return self.norm(tokens)

    def encode(self, cells: Bool[Tensor, "B h w"]) -> Float[Tensor, "B S D"]:
        """Encode the place of every cell; `cells` is True where padded."""
        return self.position(cells).flatten(2).transpose(1, 2).to(self.dtype)

    def encode_unpadded(self, height: int, width: int, device: torch.device) -> Float[Tensor, "1 S D"]:
        """Encode the place of every cell of a map without padding."""
        return self.encode(torch.zeros(1, height, width, dtype=torch.bool, device=device)).contiguous()


class LastAnswer(nn.Module):
    """Computes what `Decoder` computes, but only the last layer answers; its heads are in float32."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        """Take over the parts of `decoder`."""
        super().__init__()
        fuse_linear(decoder)
        self.layers = decoder.layers.to(dtype)
        self.norm = decoder.norm
        self.norm_between = decoder.norm_between
        self.class_head = decoder.class_head
        self.box_head = decoder.box_head

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """Return the predictions of the last layer."""
        content = queries.content
        for layer in self.layers:
            content = layer(content, queries.position, memory)
            if self.norm_between:
                content = self.norm(content.float()).to(content.dtype)
        answer = self.norm(content.float())  # [B, Q, D]
        return (Predictions(logits=self.class_head(answer), boxes=self.box_head(answer)),)
