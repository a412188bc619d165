"""Masks as products of embeddings of queries and of the cells of a feature map (MaskFormer, Cheng et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

MASK_STRIDE = 4
"""Stride in pixels of the map of masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskEmbeddings:
    """Embeddings whose products are the mask logits, which need not be computed for all queries."""

    embeddings: Float[Tensor, "B Q D"]
    """Embedding of each query."""
    cells: Float[Tensor, "B D h w"]
    """Embedding of each cell of a map with a stride of `MASK_STRIDE` pixels in the padded images."""

    def logits(self, query: Int[Tensor, "B K"]) -> Float[Tensor, "B K h w"]:
        """Return the mask logits of some queries of each image: positive where the object is."""
        rows = self.embeddings.gather(1, query[..., None].expand(-1, -1, self.embeddings.shape[2]))
        return (rows @ self.cells.flatten(2)).unflatten(2, self.cells.shape[2:])

    def queries(self, index: slice) -> MaskEmbeddings:
        """Return the masks of a slice of the queries."""
        return replace(self, embeddings=self.embeddings[:, index])
