"""Conversion between COCO's two class heads: 80 rows, and 91 rows by category id, of which eleven are unused.

DETR's head has another row, the last one, for no-object; heads of its relatives have not, but they have more tensors
with a row per class. Rows are moved but not modified, so each class keeps its logit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from querybox.models import Recipe
from querybox.models.tensors import tensors_of

UNUSED_BIAS = -1000.0
"""Bias of a new unused row: finite in float16, with a softmax and a sigmoid of exactly zero."""


def drop_rows(recipe: Recipe, state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return `state` without the `unused` rows.

    A softmax then has fewer rows, so the probabilities of the remaining ones increase slightly.
    """
    result = dict(state)
    for name in tensors_of(state, recipe.rows_by_class):
        result[name] = state[name][[row for row in range(len(state[name])) if row not in unused]]
    for name in tensors_of(state, recipe.rows_by_number):
        result[name] = state[name][: len(state[name]) - len(unused)]
    return result


def insert_rows(recipe: Recipe, state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return `state` with new `unused` rows, whose probability is always zero."""
    result = dict(state)
    by_number = tensors_of(state, recipe.rows_by_number)
    for name in (*tensors_of(state, recipe.rows_by_class), *by_number):
        tensor = state[name]
        rows = len(tensor) + len(unused)
        kept = range(len(tensor)) if name in by_number else (row for row in range(rows) if row not in unused)
        result[name] = tensor.new_full(
            (rows, *tensor.shape[1:]), UNUSED_BIAS if name.endswith(".bias") else 0.0
        )
        result[name][list(kept)] = tensor
    return result
