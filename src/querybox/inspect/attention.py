"""Attention weights of a model, recomputed from the inputs of its attention modules.

Fused attention never materialises its weights, and all of them would not fit into memory: 8 heads of 4200 x 4200 cells
are half a gigabyte for one encoder layer of a dilated model. The inputs are kept instead, and the weights of a few
queries are computed on demand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from querybox.inspect.calls import Call
from querybox.levels import Levels
from querybox.modules.attention import Attention
from querybox.modules.deformable_attention import DeformableAttention, repeat_by_level

Rows = slice | list[int]
ALL = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionMaps:
    """Attention of one layer in one image, from every query to every key."""

    module: Attention
    query: Float[Tensor, "1 Q _"]
    """Input of the module: with positions added, before the projection."""
    key: Float[Tensor, "1 S _"]
    padding_mask: Bool[Tensor, "1 S"] | None
    """True = padding."""
    blocked: Bool[Tensor, "Q S"] | None
    """True = forbidden."""

    @classmethod
    def of(cls, module: Attention, call: Call) -> AttentionMaps:
        """Keep the inputs of a call."""
        inputs = call.inputs
        return cls(
            module=module,
            query=inputs["query"],
            key=inputs["key"],
            padding_mask=inputs.get("padding_mask"),
            blocked=inputs.get("blocked"),
        )

    @torch.no_grad()
    def weights(self, queries: Rows = ALL) -> Float[Tensor, "heads Q S"]:
        """Return the attention weights of some queries; rows sum to 1 and masked keys are 0."""
        q = self.module.split(self.module.query(self.query[:, queries]))[0]  # [heads, Q, D / heads]
        k = self.module.split(self.module.key(self.key))[0]  # [heads, S, D / heads]
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if self.padding_mask is not None:
            scores = scores.masked_fill(self.padding_mask, -math.inf)
        elif self.blocked is not None:
            scores = scores.masked_fill(self.blocked[queries], -math.inf)
        return scores.softmax(-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionPoints:
    """Deformable attention of one layer in one image: a few sampling points per query instead of a map."""

    module: DeformableAttention
    query: Float[Tensor, "1 Q D"]
    reference: Float[Tensor, "1 Q R"]
    """A point (R = 2) or a box (R = 4) in 0-1 of the unpadded image."""
    levels: Levels

    @classmethod
    def of(cls, module: DeformableAttention, call: Call) -> AttentionPoints:
        """Keep the inputs of a call."""
        inputs = call.inputs
        return cls(
            module=module, query=inputs["query"], reference=inputs["reference"], levels=inputs["levels"]
        )

    @torch.no_grad()
    def points(self, queries: Rows = ALL) -> tuple[Float[Tensor, "heads Q K 2"], Float[Tensor, "heads Q K"]]:
        """Return the sampling points of some queries and their attention weights.

        Returns:
            Sampling locations (x, y) in 0-1 of the unpadded image, possibly outside of it, map by map; and their
            attention weights, which sum to 1 for every head and query.
        """
        query = self.query[:, queries]
        locations = self.module.sampling_locations(query, self.reference[:, queries], self.levels)[0]
        # From 0-1 of the padded map.
        locations = locations / repeat_by_level(self.levels.valid_ratios[0], self.module.points, 0)
        return locations.transpose(0, 1), self.module.attention_weights(query)[0].transpose(0, 1)


LayerAttention = AttentionMaps | AttentionPoints
"""Attention of one layer."""
