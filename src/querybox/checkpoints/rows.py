"""COCO's two class heads: 80 rows in order, and 91 by category id, of which eleven stand for no class.

DETR's head has one row more, its last, for "no object"; its relatives' have not, but more tensors with a row a class.
Rows are moved, never changed, so each class keeps its logit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from querybox.models.shapes import MADE

BY_CLASS = re.compile(
    r"(decoder\.class_heads?(\.\d+)?|queries\.proposals\.class_head|denoising\.label)\.(weight|bias)"
)
NEVER = -1000.0
"""Bias of a new row that stands for no class: finite, also in float16, and its softmax is zero to the last bit, and its
sigmoid as well."""


def rows_by_class(names: Collection[str]) -> list[str]:
    """Return which of our tensors have a row for each class.

    That of two-stage Deformable DETR's proposals has as many rows, but only the first is asked: for any object.
    """
    heads = [name for name in names if BY_CLASS.fullmatch(name)]
    return [name for name in heads if not (MADE in names and name.startswith("queries."))]


def rows_by_number(names: Collection[str]) -> list[str]:
    """Return which have as many rows that stand for no classes."""
    return [name for name in names if BY_CLASS.fullmatch(name) and name not in rows_by_class(names)]


def drop_rows(state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return our `state` without the `unused` rows.

    DETR's softmax is shared out over fewer rows, so every probability that stays grows by what the dropped ones had.
    """
    result = dict(state)
    for name in rows_by_class(state):
        result[name] = state[name][[row for row in range(len(state[name])) if row not in unused]]
    for name in rows_by_number(state):
        result[name] = state[name][: len(state[name]) - len(unused)]
    return result


def insert_rows(state: Mapping[str, Tensor], unused: Collection[int]) -> dict[str, Tensor]:
    """Return our `state` with `unused` rows that always have probability zero."""
    result = dict(state)
    by_number = rows_by_number(state)
    for name in (*rows_by_class(state), *by_number):
        tensor = state[name]
        rows = len(tensor) + len(unused)
        kept = range(len(tensor)) if name in by_number else (row for row in range(rows) if row not in unused)
        result[name] = tensor.new_full((rows, *tensor.shape[1:]), NEVER if name.endswith(".bias") else 0.0)
        result[name][list(kept)] = tensor
    return result
