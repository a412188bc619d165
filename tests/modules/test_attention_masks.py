"""DETR's own mask head; `tests/parity/test_segmentation.py` compares it with the original."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SEGMENTATION
from torch.testing import assert_close

from querybox import Detector, ImageBatch
from querybox.checkpoints.convert import convert
from querybox.errors import ConfigError
from querybox.inference.predict import predict
from querybox.mask_embeddings import ComputedMasks
from querybox.masks import mask_iou
from querybox.modules import attention_masks
from querybox.structures import DetectorOutput, Preprocessing
from querybox.training.finetune import initialize_from


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r50", categories=["cat", "dog", "cow"], **SEGMENTATION).eval()
    detector.preprocessing = Preprocessing(short_side=60, long_side=92)
    return detector


@pytest.fixture(scope="module")
def masks(detector: Detector) -> ComputedMasks:
    """Of an image of 60 x 92 pixels and one of 40 x 72."""
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((60, 92), (40, 72))]
    with torch.no_grad():
        first, last = detector(ImageBatch.from_images(images)).layers
    assert first.masks is None
    assert isinstance(last.masks, ComputedMasks)
    assert last.masks.shape == (15, 23)
    return last.masks


@torch.no_grad()
def test_logits_at_points(masks: ComputedMasks) -> None:
    queries = [torch.tensor([[3, 0]]), torch.tensor([[7]])]
    cells = torch.tensor([[0, 0], [4, 20], [14, 22], [9, 1]])  # (row, column)
    points = 2 * (cells.flip(1) + 0.5) / torch.tensor([23, 15]) - 1  # their centres
    found = list(masks.at_points([masks], queries, points.expand(2, -1, -1)))
    maps = masks.logits(torch.tensor([[3, 0], [7, 7]]))
    for logits, wanted in zip(found, (maps[0], maps[1, :1]), strict=True):
        assert_close(logits[0], wanted[:, cells[:, 0], cells[:, 1]], rtol=0, atol=1e-5)
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    assert [each.shape for each in masks.at_points([masks], [nothing] * 2, points.expand(2, -1, -1))] == [
        (1, 0, 4),
        (1, 0, 4),
    ]


@torch.no_grad()
def test_queries_are_computed_in_parts(masks: ComputedMasks, monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.arange(10).flip(0).expand(2, -1)
    together = masks.logits(query)
    monkeypatch.setattr(attention_masks, "QUERIES_AT_ONCE", 4)
    assert_close(masks.logits(query), together, rtol=0, atol=1e-5)
    assert masks.logits(query[:, :0]).shape == (2, 0, 15, 23)


def test_a_file_has_the_head(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    detector.save(path)
    loaded = Detector.load(path)
    assert loaded.recipe == detector.recipe
    image = torch.randint(256, (3, 60, 92), dtype=torch.uint8)
    (one,), (other,) = (each.predict(image, threshold=0, top_k=3) for each in (detector, loaded))
    assert one.masks is not None
    assert len(one.masks) == 3
    assert one.masks == other.masks
    with pytest.raises(ConfigError, match=r"MMDetection 3\.x has no DETR with masks='attention'"):
        convert(path, tmp_path / "mmdet.pth", to="mmdet3")


def test_fine_tuning_keeps_the_head(detector: Detector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="querybox")
    new = Detector.from_recipe("detr_r50", categories=["cow", "hen"], **SEGMENTATION)
    initialize_from(new, detector, "masks.safetensors")
    assert new.mask_head is not None
    assert detector.mask_head is not None
    assert_close(new.mask_head.state_dict(), detector.mask_head.state_dict(), rtol=0, atol=0)
    head, source = (each.state_dict()["decoder.class_head.bias"] for each in (new, detector))
    assert torch.equal(head[[0, 2]], source[[2, 3]])  # cow, and no object
    assert "mask head" not in caplog.text

    other = Detector.from_recipe("detr_r50", categories=["cow"], **{**SEGMENTATION, "masks": True})
    assert other.mask_head is not None
    initial = {name: tensor.clone() for name, tensor in other.mask_head.state_dict().items()}
    initialize_from(other, detector, "masks.safetensors")
    assert_close(other.mask_head.state_dict(), initial, rtol=0, atol=0)
    assert "has a mask head, which is dropped; model.masks=attention keeps it" in caplog.text


@pytest.mark.parametrize(("name", "value", "factor"), [("width", 64, 128), ("heads", 4, 8)])
def test_sizes_that_cannot_be_grouped(name: str, value: int, factor: int) -> None:
    message = f"'masks' is 'attention', which requires a '{name}' that is a multiple of {factor}, got {value}"
    with pytest.raises(ConfigError, match=message):
        Detector.from_recipe("detr_r50", num_classes=2, **{**SEGMENTATION, name: value})


class Wrapped:
    """An engine that runs the detector itself, not an optimised copy of it."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.categories, self.preprocessing = detector.categories, detector.preprocessing
        self.device = detector.device

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        return self.detector(batch)


def test_an_engine_of_ones_own_has_the_masks_of_the_detector(detector: Detector) -> None:
    image = torch.randint(256, (3, 60, 92), dtype=torch.uint8)
    ((ours,), (theirs,)) = (predict(each, image, threshold=0) for each in (Wrapped(detector), detector))
    assert ours.masks is not None
    assert theirs.masks is not None
    assert len(ours.masks) == 10
    shares = mask_iou(ours.masks, theirs.masks, np.zeros(10, dtype=bool)).diagonal()
    assert all(share > 0.99 or not mask.area for share, mask in zip(shares, theirs.masks, strict=True))
