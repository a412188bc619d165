"""Our attention is PyTorch's multi-head attention with its projections taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from querybox.modules.attention import Attention


def test_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4, 0.0), nn.MultiheadAttention(16, 4, batch_first=True)
    weights, biases = theirs.in_proj_weight.chunk(3), torch.randn(3, 16)
    for projection, weight, bias in zip((ours.query, ours.key, ours.value), weights, biases, strict=True):
        projection.load_state_dict({"weight": weight, "bias": bias})
    theirs.in_proj_bias.data.copy_(biases.flatten())
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    padding_mask = torch.zeros(2, 7, dtype=torch.bool)
    padding_mask[1, 4:] = True
    wanted, _ = theirs(query, key, value, key_padding_mask=padding_mask)
    assert_close(ours(query, key, value, padding_mask), wanted)


def test_queries_and_keys_may_have_other_projections_which_may_be_wider() -> None:
    torch.manual_seed(0)
    query, key = nn.Linear(24, 32), nn.Linear(8, 32)
    attention = Attention(16, 4, 0.0, query=nn.Sequential(query), key=nn.Sequential(key))
    queries, keys, values = torch.randn(2, 5, 24), torch.randn(2, 7, 8), torch.randn(2, 7, 16)
    scores = torch.einsum(
        "bqhd,bshd->bhqs",
        query(queries).unflatten(2, (4, 8)),
        key(keys).unflatten(2, (4, 8)),
    )
    mixed = torch.einsum(
        "bhqs,bshd->bqhd", (scores / 8**0.5).softmax(-1), attention.value(values).unflatten(2, (4, 4))
    )
    assert_close(attention(queries, keys, values), attention.output(mixed.flatten(2)))


def test_padding_is_not_looked_at() -> None:
    attention = Attention(8, 2, 0.0)
    query, memory = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    padding_mask = torch.tensor([[False, False, False, False, True, True]])
    changed = memory.clone()
    changed[:, 4:] = 100.0
    before = attention(query, memory, memory, padding_mask)
    assert_close(attention(query, changed, changed, padding_mask), before)


def test_both_masks_hold_at_once() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, 0.0)
    query, memory = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    padding_mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    blocked = torch.zeros(3, 6, dtype=torch.bool)
    blocked[1, :3] = True
    mixed = attention(query, memory, memory, padding_mask, blocked=blocked)
    seen = {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2, 3]}  # of each image, by a query that is not blocked
    for image, keys in seen.items():
        for row in range(3):
            kept = [key for key in keys if not blocked[row, key]]
            alone = memory[image : image + 1, kept]
            wanted = attention(query[image : image + 1, row : row + 1], alone, alone)
            assert_close(mixed[image : image + 1, row : row + 1], wanted)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        Attention(10, 4, 0.0)
