"""Boxes as distributions of their edges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Distributions of the distances of a box's edges from those of a start box (D-FINE, section 4.1)."""

    logits: Float[Tensor, "B Q 4 N"]
    """Logits of the N distances, for the left, top, right and bottom edge, in float32 or more."""
    start: Float[Tensor, "B Q 4"]
    """The start boxes: cxcywh in 0-1 of the unpadded image, without gradient."""
    distances: Float[Tensor, " N"]
    """The distances outwards, relative to the width or height of the start box, in increasing order."""

    def probabilities(self) -> Float[Tensor, "B Q 4 N"]:
        """Return the probability of each distance, 0-1."""
        return self.logits.softmax(-1)

    def boxes(self) -> Float[Tensor, "B Q 4"]:
        """Return the boxes whose edges are at the mean distances: cxcywh, not limited to 0-1."""
        # Not a matrix product, which autocast would compute in half precision.
        near, far = (self.probabilities() * self.distances).sum(-1).chunk(2, -1)  # [B, Q, 2]
        centre, size = self.start.chunk(2, -1)
        return torch.cat([centre + (far - near) / 2 * size, (1 + near + far) * size], -1)

    def of_queries(self, index: slice) -> Edges:
        """Return the distributions of a slice of the queries."""
        return replace(self, logits=self.logits[:, index], start=self.start[:, index])
