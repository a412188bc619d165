from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from querybox.checkpoints.coco import CATEGORIES, UNUSED_ROWS
from querybox.checkpoints.rows import drop_rows, insert_rows
from querybox.models import DETR, DINO, DeformableDETR

WEIGHT, BIAS = "decoder.class_head.weight", "decoder.class_head.bias"
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
    narrow = drop_rows(DETR(), wide, UNUSED_ROWS)
    assert narrow[WEIGHT].shape == (81, 4)
    assert_close(logits(narrow, answers), logits(wide, answers)[:, [*IDS, 91]])
    assert narrow["other"] is wide["other"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_wider_and_back_is_the_very_same(dtype: torch.dtype) -> None:
    narrow = head(81, dtype)
    wide = insert_rows(DETR(), narrow, UNUSED_ROWS)
    assert wide[WEIGHT].dtype == wide[BIAS].dtype == dtype
    back = drop_rows(DETR(), wide, UNUSED_ROWS)
    assert all(torch.equal(back[name], tensor) for name, tensor in narrow.items())


def test_new_rows_have_no_probability() -> None:
    narrow, answers = head(81), 30 * torch.randn(7, 4)
    scores = logits(insert_rows(DETR(), narrow, UNUSED_ROWS), answers).softmax(-1)
    assert float(scores[:, list(UNUSED_ROWS)].abs().max()) == 0.0
    assert_close(scores[:, [*IDS, 91]], logits(narrow, answers).softmax(-1))


def test_what_dropped_rows_had_goes_to_the_others() -> None:
    wide, answers = head(92), torch.randn(7, 4)
    before = logits(wide, answers).softmax(-1)
    lost = before[:, list(UNUSED_ROWS)].sum(-1, keepdim=True)
    after = logits(drop_rows(DETR(), wide, UNUSED_ROWS), answers).softmax(-1)
    assert_close(after, before[:, [*IDS, 91]] / (1 - lost))


def relative(*, two_stage: bool) -> dict[str, Tensor]:
    """What has 80 rows in DINO, or in two-stage Deformable DETR, whose proposals are of any class."""
    torch.manual_seed(0)
    heads = [f"{name}.{kind}" for name in HEADS for kind in ("weight", "bias")]
    state = {name: torch.randn(80, *([4] if name.endswith("weight") else [])) for name in heads}
    return state | (
        {"queries.norm.weight": torch.ones(8)} if two_stage else {"denoising.label.weight": state[heads[0]]}
    )


HEADS = ("decoder.class_heads.0", "decoder.class_heads.1", "queries.proposals.class_head")


@pytest.mark.parametrize("two_stage", [False, True])
def test_relatives_have_more_tensors_with_rows(two_stage: bool) -> None:
    recipe = DeformableDETR(refine=True, two_stage=True) if two_stage else DINO()
    narrow = relative(two_stage=two_stage)
    wide = insert_rows(recipe, narrow, UNUSED_ROWS)
    changed = [name for name in narrow if name != "queries.norm.weight"]
    assert all(len(wide[name]) == 91 for name in changed)
    assert torch.equal(wide["decoder.class_heads.1.bias"][IDS], narrow["decoder.class_heads.1.bias"])
    assert float(wide["decoder.class_heads.0.bias"][list(UNUSED_ROWS)].sigmoid().max()) == 0.0
    # "Any object" stays the first row; elsewhere the first is of no class.
    rows = list(range(80)) if two_stage else IDS
    for leaf in ("weight", "bias"):
        name = f"queries.proposals.class_head.{leaf}"
        assert torch.equal(wide[name][rows], narrow[name])
    back = drop_rows(recipe, wide, UNUSED_ROWS)
    assert all(torch.equal(back[name], tensor) for name, tensor in narrow.items())
