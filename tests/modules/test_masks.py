"""The mask head against its definition, cell by cell, and in every kind of detector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import HYBRID, PUBLIC, TINY
from torch import Tensor
from torch.testing import assert_close

from querybox import Detector, ImageBatch, QueryboxError
from querybox.checkpoints.convert import convert
from querybox.levels import Levels
from querybox.mask_embeddings import MaskEmbeddings
from querybox.modules.masks import MaskHead
from querybox.structures import Memory, Predictions

BACKBONE = {"backbone": "test_resnet"}
PYRAMID = {**TINY, "levels": 2, "strides": (8, 16)}
KINDS: dict[str, dict[str, Any]] = {
    "detr_r50": TINY,
    "conditional_detr_r50": TINY,
    "deformable_detr_r50": PYRAMID,
    "dino_r50": PYRAMID,
    "rtdetr_r18": {**HYBRID, **BACKBONE},
    "dfine_s": {**HYBRID, **BACKBONE},
}


def cell(feature: Tensor, coarse: Tensor, head: MaskHead, row: int, column: int) -> Tensor:
    """The cell of one image before the block: the lateral, and the interpolated map of the encoder."""
    _, height, width = coarse.shape
    bias = head.lateral.bias
    assert bias is not None
    total: Tensor = head.lateral.weight @ feature[:, row, column] + bias
    y, x = ((place + 0.5) / head.scale - 0.5 for place in (row, column))
    for i in range(height):
        for j in range(width):
            # The cells at the edge go on beyond it.
            weight_y = max(0.0, 1 - abs(min(max(y, 0), height - 1) - i))
            weight_x = max(0.0, 1 - abs(min(max(x, 0), width - 1) - j))
            total = total + weight_y * weight_x * coarse[:, i, j]
    return total


def test_the_head_is_its_definition() -> None:
    torch.manual_seed(0)
    head = MaskHead(3, 4, stride=8).double()
    feature, coarse = torch.randn(1, 3, 5, 6).double(), torch.randn(1, 4, 3, 3).double()
    other, content = torch.randn(1, 2, 4).double(), torch.randn(1, 7, 4).double()
    shapes = ((3, 3), (1, 2))
    levels = Levels(
        shapes=shapes, sizes=torch.tensor(shapes).float(), valid_ratios=torch.ones(1, 2, 2), padding_mask=None
    )
    tokens = torch.cat([coarse.flatten(2).transpose(1, 2), other], 1)
    layer = Predictions(logits=torch.zeros(1, 7, 2), boxes=torch.zeros(1, 7, 4), content=content)
    memory = Memory(tokens=tokens, padding_mask=None, levels=levels)
    (found,) = head((layer,), [feature], [coarse], memory)

    cells = torch.zeros(7, 8, 4).double()  # surrounded by zeros
    for row in range(5):
        for column in range(6):
            cells[row + 1, column + 1] = cell(feature[0], coarse[0], head, row, column)
    weights = dict(head.named_parameters())
    embedding = content[0]
    for index in (0, 2, 4):
        embedding = embedding @ weights[f"embedding.{index}.weight"].T + weights[f"embedding.{index}.bias"]
        embedding = embedding if index == 4 else embedding.relu()
    masks = torch.zeros(7, 5, 6).double()
    for row in range(5):
        for column in range(6):
            window = cells[row : row + 3, column : column + 3]  # [3, 3, D]
            kernel = weights["block.depthwise.weight"][:, 0].permute(1, 2, 0)
            x = head.block.norm((window * kernel).sum((0, 1)) + weights["block.depthwise.bias"])
            x = F.gelu(weights["block.pointwise.weight"] @ x + weights["block.pointwise.bias"])
            masks[:, row, column] = embedding @ (cells[row + 1, column + 1] + x)
    assert found.masks is not None
    query = torch.tensor([[4, 0, 4]])
    assert_close(found.masks.logits(query)[0], masks[query[0]])
    assert_close(found.masks.of_queries(slice(4, None)).logits(torch.tensor([[0]]))[0], masks[[4]])


@pytest.mark.parametrize("recipe", KINDS)
def test_masks_change_nothing_else(recipe: str) -> None:
    detectors = []
    for masks in (False, True):
        torch.manual_seed(0)
        detectors.append(Detector.from_recipe(recipe, num_classes=3, masks=masks, **KINDS[recipe]).eval())
    without, with_masks = detectors
    state = with_masks.state_dict()
    assert {name for name in state if name not in without.state_dict()} == {
        name for name in state if name.startswith("mask_head.")
    }
    batch = ImageBatch.from_images([torch.randint(256, (3, 75, 90), dtype=torch.uint8)])
    with torch.inference_mode():
        plain, masked = (detector(batch).layers for detector in detectors)
    for one, other in zip(plain, masked, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert torch.equal(one.boxes, other.boxes)
        assert one.masks is None
        assert isinstance(other.masks, MaskEmbeddings)
        assert other.masks.cells.shape == (1, 32, 19, 23)


def test_a_file_has_the_mask_head(tmp_path: Path) -> None:
    detector = Detector.from_recipe("detr_r50", num_classes=3, masks=True, **PUBLIC).eval()
    detector.save(tmp_path / "masks.safetensors")
    loaded = Detector.load(tmp_path / "masks.safetensors")
    assert loaded.recipe == detector.recipe
    assert loaded.mask_head is not None
    assert detector.mask_head is not None
    assert_close(loaded.mask_head.state_dict(), detector.mask_head.state_dict(), rtol=0, atol=0)
    with pytest.raises(QueryboxError, match="masks=True; only the format of querybox"):
        convert(tmp_path / "masks.safetensors", tmp_path / "theirs.pth", to="facebook")
