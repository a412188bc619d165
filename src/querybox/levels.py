"""Multi-scale feature maps, and the properties of their cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Shapes = tuple[tuple[int | torch.SymInt, int | torch.SymInt], ...]
"""(height, width) of several feature maps in cells; `SymInt` while a graph with dynamic sizes is traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Multi-scale feature maps whose cells are concatenated in the memory, fine to coarse; S cells in total."""

    shapes: Shapes
    """(height, width) of each map in cells."""
    sizes: Float[Tensor, "levels 2"]
    """(width, height) of each map in cells, as a tensor on the device."""
    valid_ratios: Float[Tensor, "B levels 2"]
    """Fraction of each map's (width, height) that is not padding, 0-1."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None if nothing is padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Properties of the cells of an encoder's feature maps that depend on their shapes and padding alone.

    S cells: those of the coarsest map in RT-DETR, otherwise those of all maps.
    """

    position: Float[Tensor, "B S D"]
    """Positional encoding."""
    padding_mask: Bool[Tensor, "B S"] | None
    """True = padding; None if nothing is padded."""
    reference: Float[Tensor, "B S 2"] | None = None
    """Centre (x, y) of every cell, in 0-1 of the unpadded image; None if no layer uses it (DETR, RT-DETR)."""
    levels: Levels | None = None
    """The feature maps that the cells belong to; None if there is only one (DETR)."""

    def unpadded(self) -> Cells:
        """Return the cells without masks, for images that are known to have no padding."""
        levels = self.levels and replace(self.levels, padding_mask=None)
        return replace(self, padding_mask=None, levels=levels)

    def expand(self, batch: int) -> Cells:
        """Expand the cells of one unpadded image to a batch."""
        levels = self.levels and replace(
            self.levels, valid_ratios=self.levels.valid_ratios.expand(batch, -1, -1)
        )
        reference = None if self.reference is None else self.reference.expand(batch, -1, -1)
        position = self.position.expand(batch, -1, -1)
        return replace(self, position=position, reference=reference, levels=levels)
