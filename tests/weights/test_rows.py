from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.weights.coco import CATEGORIES, UNUSED_ROWS
from querybox.weights.rows import BIAS, WEIGHT, drop_rows, insert_rows

IDS = [category.id for category in CATEGORIES]


def head(rows: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(rows)
    return {
        WEIGHT: torch.randn(rows, 4, dtype=dtype),
        BIAS: torch.randn(rows, dtype=dtype),
        "other": torch.ones(2),
    }


def logits(state: dict[str, Tensor], states: Tensor) -> Tensor:
    return torch.nn.functional.linear(states, state[WEIGHT], state[BIAS])


def test_each_class_keeps_its_logit() -> None:
    wide, answers = head(92), torch.randn(7, 4)
    narrow = drop_rows(wide, UNUSED_ROWS)
    assert narrow[WEIGHT].shape == (81, 4)
    assert_close(logits(narrow, answers), logits(wide, answers)[:, [*IDS, 91]])
    assert narrow["other"] is wide["other"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_wider_and_back_is_the_very_same(dtype: torch.dtype) -> None:
    narrow = head(81, dtype)
    wide = insert_rows(narrow, UNUSED_ROWS)
    assert wide[WEIGHT].dtype == wide[BIAS].dtype == dtype
    back = drop_rows(wide, UNUSED_ROWS)
    assert all(torch.equal(back[name], tensor) for name, tensor in narrow.items())


def test_new_rows_have_no_probability() -> None:
    narrow, answers = head(81), 30 * torch.randn(7, 4)
    scores = logits(insert_rows(narrow, UNUSED_ROWS), answers).softmax(-1)
    assert float(scores[:, list(UNUSED_ROWS)].abs().max()) == 0.0
    assert_close(scores[:, [*IDS, 91]], logits(narrow, answers).softmax(-1))


def test_what_dropped_rows_had_goes_to_the_others() -> None:
    wide, answers = head(92), torch.randn(7, 4)
    before = logits(wide, answers).softmax(-1)
    lost = before[:, list(UNUSED_ROWS)].sum(-1, keepdim=True)
    after = logits(drop_rows(wide, UNUSED_ROWS), answers).softmax(-1)
    assert_close(after, before[:, [*IDS, 91]] / (1 - lost))
