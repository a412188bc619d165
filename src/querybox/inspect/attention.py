"""Where a model looked: its attention, computed again from what the attention modules were given.

A fast attention never has its weights in memory, and all of them would fill it: 8 heads of 4200 x 4200 cells are half
a gigabyte for one encoder layer of a dilated model. So the inputs are kept, and the weights of a few queries are made
when they are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from querybox.inspect.calls import Call
from querybox.modules.attention import Attention
from querybox.modules.deformable_attention import DeformableAttention
from querybox.structures import Levels

Rows = slice | list[int]
ALL = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionMaps:
    """The attention of one layer to one image, every query to every key."""

    module: Attention
    query: Float[Tensor, "1 Q D"]
    """As the module was given it: with its position, before the projection."""
    key: Float[Tensor, "1 S D"]
    padding_mask: Bool[Tensor, "1 S"] | None
    """True = padding."""
    blocked: Bool[Tensor, "Q S"] | None
    """True = forbidden."""

    @classmethod
    def of(cls, module: Attention, call: Call) -> AttentionMaps:
        """Keep what the module was given."""
        given = call.inputs
        return cls(
            module=module,
            query=given["query"],
            key=given["key"],
            padding_mask=given.get("padding_mask"),
            blocked=given.get("blocked"),
        )

    @torch.no_grad()
    def weights(self, queries: Rows = ALL) -> Float[Tensor, "heads Q S"]:
        """Return how much of each key some queries took: rows that sum to 1, with 0 where it was forbidden."""
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
    """The deformable attention of one layer to one image: a few points for every query, where others have maps."""

    module: DeformableAttention
    query: Float[Tensor, "1 Q D"]
    reference: Float[Tensor, "1 Q R"]
    """A point (R = 2) or a box (R = 4) in 0-1 of the unpadded image."""
    levels: Levels

    @classmethod
    def of(cls, module: DeformableAttention, call: Call) -> AttentionPoints:
        """Keep what the module was given."""
        given = call.inputs
        return cls(module=module, query=given["query"], reference=given["reference"], levels=given["levels"])

    @torch.no_grad()
    def points(
        self, queries: Rows = ALL
    ) -> tuple[Float[Tensor, "heads Q L P 2"], Float[Tensor, "heads Q L P"]]:
        """Return where some queries looked, and how much each place counted.

        Returns:
            Places (x, y) in 0-1 of the unpadded image, some of them outside, P on each of L maps; and their weights,
            which sum to 1 for every head and query.
        """
        query = self.query[:, queries]
        places = self.module.choose(query, self.reference[:, queries], self.levels)[0]
        places = places / self.levels.valid[0][:, None]  # they were in 0-1 of the padded map
        return places.transpose(0, 1), self.module.weigh(query)[0].transpose(0, 1)


Look = AttentionMaps | AttentionPoints
"""Where one layer looked."""
