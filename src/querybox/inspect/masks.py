"""The masks of an image's queries in every decoder layer, computed for the queries that they are asked of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from querybox.mask_embeddings import MASK_STRIDE, Masks
from querybox.structures import DetectorOutput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryMasks:
    """Masks of one image's queries, by layer."""

    layers: dict[int, Masks]
    """Indices of the layers that have masks, from 0; DETR's own head predicts them in the last layer only."""
    size: tuple[int, int]
    """(height, width) of the resized image in pixels."""
    device: torch.device

    @classmethod
    def of(cls, output: DetectorOutput, size: tuple[int, int]) -> QueryMasks | None:
        """Return the masks of a detector's output for one image; None without a mask head."""
        layers = {
            number: layer.masks for number, layer in enumerate(output.layers) if layer.masks is not None
        }
        return cls(layers=layers, size=size, device=output.layers[-1].boxes.device) if layers else None

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of a mask in cells of `MASK_STRIDE` pixels, the last of which may extend beyond the image."""
        height, width = self.size
        return -(-height // MASK_STRIDE), -(-width // MASK_STRIDE)

    @torch.no_grad()
    def cells(self, layer: int, queries: Sequence[int]) -> Bool[Tensor, "N h w"]:
        """Return the cells of the image with a positive logit, whether inside the box of the query or not.

        Args:
            layer: One of `layers`.
            queries: N queries.
        """
        height, width = self.grid
        logits = self.layers[layer].logits(torch.tensor([list(queries)], device=self.device))  # [1, N, h, w]
        return (logits[0, :, :height, :width] > 0).cpu()
