from __future__ import annotations

from dataclasses import replace

import torch
from torch.testing import assert_close

from querybox import ImageBatch, Preprocessing, Target

SMALL, LARGE = torch.full((3, 4, 6), 200, dtype=torch.uint8), torch.full((3, 5, 6), 100, dtype=torch.uint8)


def test_a_batch_knows_whether_it_is_padded() -> None:
    assert not ImageBatch.from_images([SMALL]).padded
    assert not ImageBatch.from_images([SMALL, SMALL]).padded
    mixed = ImageBatch.from_images([SMALL, LARGE])
    assert mixed.padded
    assert mixed.padding_mask.sum() == 6
    assert (mixed.images[0, :, 4:] == 0).all()


def test_knowing_that_nothing_is_padded_changes_no_number() -> None:
    sizes = torch.tensor([[4, 6]])
    known = ImageBatch.from_pixels(SMALL[None], sizes, Preprocessing(), padded=False)
    unknown = ImageBatch.from_pixels(SMALL[None], sizes, Preprocessing())
    assert unknown.padded
    assert_close(known.images, unknown.images, rtol=0, atol=0)
    assert torch.equal(known.padding_mask, unknown.padding_mask)


def test_masks_follow_their_target() -> None:
    masks = torch.tensor([[[True, False]]])
    target = Target(boxes=torch.rand(1, 4), labels=torch.tensor([0]), masks=masks)
    copied, moved = target.to("cpu").masks, target.to("meta").masks
    assert copied is not None
    assert moved is not None
    assert torch.equal(copied, masks)
    assert moved.device.type == "meta"
    assert replace(target, masks=None).to("cpu").masks is None
