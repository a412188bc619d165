"""COCO's two class heads: 80 rows in order, and 91 by category id, of which eleven stand for no class.

DETR's head has one row more, its last, for "no object"; its relatives' have not, but more tensors with a row a class.
Rows are moved, never changed, so each class keeps its logit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from querybox.models import Recipe
from querybox.models.tensors import tensors_of

NEVER = -1000.0
"""Bias of a new row that stands for no class: finite, also in float16, and its softmax is zero to the last bit, and its
sigmoid as well."""


def drop_rows(recipe: Recipe, state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return the recipe's `state` without the `unused` rows.

    A softmax is shared out over fewer rows, so every probability that stays grows by what the dropped ones had.
    """
    result = dict(state)
    for name in tensors_of(state, recipe.rows_by_class):
        result[name] = state[name][[row for row in range(len(state[name])) if row not in unused]]
    for name in tensors_of(state, recipe.rows_by_number):
        result[name] = state[name][: len(state[name]) - len(unused)]
    return result


def insert_rows(recipe: Recipe, state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return the recipe's `state` with `unused` rows that always have probability zero."""
    result = dict(state)
    by_number = tensors_of(state, recipe.rows_by_number)
    for name in (*tensors_of(state, recipe.rows_by_class), *by_number):
        tensor = state[name]
        rows = len(tensor) + len(unused)
        kept = range(len(tensor)) if name in by_number else (row for row in range(rows) if row not in unused)
        result[name] = tensor.new_full((rows, *tensor.shape[1:]), NEVER if name.endswith(".bias") else 0.0)
        result[name][list(kept)] = tensor
    return result
