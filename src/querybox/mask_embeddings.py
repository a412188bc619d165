"""Masks that a detector predicts, of which the logits are computed only where they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

MASK_STRIDE = 4
"""Stride in pixels of the map of masks."""


class Masks(ABC):
    """Masks of the queries of a decoder layer, on a map with a stride of `MASK_STRIDE` pixels in the padded images."""

    __slots__ = ()

    @abstractmethod
    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image: positive where the object is."""

    @abstractmethod
    def queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""

    @classmethod
    @abstractmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points, bilinearly interpolated.

        Args:
            layers: The masks of every layer.
            queries: For each image the queries, in every layer.
            points: (x, y) in -1 to 1 of the padded images.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskEmbeddings(Masks):
    """Embeddings whose products are the mask logits (MaskFormer, Cheng et al. 2021)."""

    embeddings: Float[Tensor, "B Q D"]
    """Embedding of each query."""
    cells: Float[Tensor, "B D h w"]
    """Embedding of each cell of the map, the same in every layer."""

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image; see `Masks.logits`."""
        rows = self.embeddings.gather(1, query[..., None].expand(-1, -1, self.embeddings.shape[2]))
        return (rows @ self.cells.flatten(2)).unflatten(2, self.cells.shape[2:])

    def queries(self, index: slice) -> Self:
        """Return the masks of a slice of the queries."""
        return replace(self, embeddings=self.embeddings[:, index])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map in cells."""
        return self.cells.shape[2], self.cells.shape[3]

    @classmethod
    def at_points(
        cls, layers: Sequence[Self], queries: Sequence[Int[Tensor, "L _"]], points: Float[Tensor, "B P 2"]
    ) -> Iterator[Float[Tensor, "L _ P"]]:
        """Yield for each image the logits of some of its queries at points; see `Masks.at_points`.

        The cells are interpolated instead of the logits, which is the same.
        """
        embeddings = torch.stack([layer.embeddings for layer in layers])  # [L, B, Q, D]
        cells = sample(layers[0].cells, points)  # [B, D, P]
        for image, query in enumerate(queries):
            rows = query[..., None].expand(-1, -1, embeddings.shape[3])
            yield embeddings[:, image].gather(1, rows) @ cells[image]


def sample(maps: Float[Tensor, "B _ h w"], points: Float[Tensor, "B P 2"]) -> Float[Tensor, "B _ P"]:
    """Return maps at points (x, y) in -1 to 1, bilinearly interpolated; beyond an edge, the cells at it go on."""
    grid = points.to(maps.dtype)[:, None]  # [B, 1, P, 2]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]
