"""The mask head, which predicts the pixels of the object of each query."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querybox.mask_embeddings import MASK_STRIDE, MaskEmbeddings, Masks
from querybox.modules.heads import BoxLayers
from querybox.structures import Memory, Predictions


class MaskHead(nn.Module):
    """Predicts masks as products of embeddings of queries and of the cells of a map with stride 4.

    As in Mask DINO (Li et al. 2022, section 3.3), the cells are those of the backbone's map with stride 4, to which the
    finest map of the encoder is added. They then pass one block of depthwise and pointwise convolution, which costs a
    tenth of a full 3x3 convolution.
    """

    strides: ClassVar[tuple[int, ...]] = (MASK_STRIDE,)
    """Strides of the backbone's maps that the head is given."""

    def __init__(self, channels: int, width: int, *, stride: int) -> None:
        """Create the head.

        Args:
            channels: Channels of the backbone's map with a stride of `MASK_STRIDE`.
            width: Features of a token and of a query, D.
            stride: Stride in pixels of the finest map of the encoder, a multiple of `MASK_STRIDE`.
        """
        super().__init__()
        self.scale = stride // MASK_STRIDE
        self.lateral = nn.Linear(channels, width)
        self.block = CellBlock(width)
        self.embedding = BoxLayers(width, width)

    def forward(
        self,
        layers: tuple[Predictions, ...],
        maps: list[Float[Tensor, "B _ h w"]],
        features: list[Float[Tensor, "B D _ _"]],
        memory: Memory,
    ) -> tuple[Predictions, ...]:
        """Return the predictions of every layer with masks.

        Args:
            layers: Predictions of every layer.
            maps: The backbone's map with a stride of `MASK_STRIDE`.
            features: The feature maps that the encoder was given, the finest one first.
            memory: The output of the encoder.
        """
        (feature,), shape = maps, features[0].shape[-2:]
        height, width = shape
        coarse = memory.tokens[:, : height * width].transpose(1, 2).unflatten(2, shape)  # [B, D, _, _]
        contents = torch.stack([layer.content for layer in layers if layer.content is not None])
        masks = self.masks(contents, self.merged(feature, self.enlarged(coarse, feature)))
        return tuple(replace(layer, masks=each) for layer, each in zip(layers, masks, strict=True))

    def merged(
        self, feature: Float[Tensor, "B _ h w"], coarse: Float[Tensor, "B D h w"]
    ) -> Float[Tensor, "B D h w"]:
        """Return the sum of the backbone's map, projected, and the enlarged one of the encoder.

        Features come last in memory, as in tokens: none of the large maps is transposed, forward or backward.
        """
        return self.lateral(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + coarse

    def masks(self, contents: Float[Tensor, "L B Q D"], cells: Float[Tensor, "B D h w"]) -> Iterable[Masks]:
        """Return the masks of every layer, given the contents of the queries and the cells before the block."""
        cells = self.block(cells)
        return [MaskEmbeddings(embeddings=each, cells=cells) for each in self.embedding(contents)]

    def enlarged(
        self, coarse: Float[Tensor, "B D _ _"], feature: Float[Tensor, "B _ h w"]
    ) -> Float[Tensor, "B D h w"]:
        """Enlarge the encoder's map to the size of `feature`.

        By its stride, not to that size, which is not always a multiple: cells stay where they are in the image, however
        much it is padded.
        """
        if self.scale > 1:
            # A slice of tokens does not count as channels-last: the large map would not be in the format of `feature`.
            coarse = coarse.clone(memory_format=torch.channels_last)
            coarse = F.interpolate(coarse, scale_factor=float(self.scale), mode="bilinear")
        return self.cut(coarse, feature.shape[2], feature.shape[3])

    def cut(
        self, x: Float[Tensor, "B D _ _"], height: int | torch.SymInt, width: int | torch.SymInt
    ) -> Float[Tensor, "B D h w"]:
        """Return the top left cells of a map; a separate method, which an export replaces.

        They are cut with the features last, as they are in memory: PyTorch makes the gradient of a slice contiguous.
        """
        return x.permute(0, 2, 3, 1)[:, :height, :width].permute(0, 3, 1, 2)


class CellBlock(nn.Module):
    """Depthwise 3x3 convolution, layer norm, linear layer and GELU, with a residual connection (as in RF-DETR)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise = nn.Linear(width, width)
        self.activation = nn.GELU()

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Return the updated cells."""
        around = self.depthwise(x).permute(0, 2, 3, 1)  # features come last in memory, as in tokens
        return x + self.change(around).permute(0, 3, 1, 2)

    def change(self, around: Float[Tensor, "*cells D"]) -> Float[Tensor, "*cells D"]:
        """Return what is added to cells, each computed by itself from its convolution with those around it."""
        return self.activation(self.pointwise(self.norm(around)))
