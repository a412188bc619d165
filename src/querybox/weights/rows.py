"""COCO's two class heads: 80 rows in order, and 91 by category id, of which eleven stand for no class.

Either head has one row more, its last, for "no object". Rows are moved, never changed, so each class keeps its logit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

WEIGHT, BIAS = "decoder.class_head.weight", "decoder.class_head.bias"
NEVER = -1000.0
"""Bias of a new row that stands for no class: finite, also in float16, and its softmax is zero to the last bit."""


def drop_rows(state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return our `state` without the `unused` rows of the class head.

    The softmax is shared out over fewer rows, so every probability that stays grows by what the dropped ones had.
    """
    kept = [row for row in range(len(state[BIAS])) if row not in unused]
    return {**state, WEIGHT: state[WEIGHT][kept], BIAS: state[BIAS][kept]}


def insert_rows(state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return our `state` with `unused` rows in the class head that always have probability zero."""
    weight, bias = state[WEIGHT], state[BIAS]
    rows = len(bias) + len(unused)
    kept = [row for row in range(rows) if row not in unused]
    wide_weight = weight.new_zeros(rows, weight.shape[1])
    wide_bias = bias.new_full((rows,), NEVER)
    wide_weight[kept], wide_bias[kept] = weight, bias
    return {**state, WEIGHT: wide_weight, BIAS: wide_bias}
