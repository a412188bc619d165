"""Resizing the padding mask to the size of a feature map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from querybox.modules.encoder import shrink_mask


@pytest.mark.parametrize("stride", [4, 8, 16, 32, 64])
def test_a_padding_mask_is_shrunk_like_the_originals_do(stride: int) -> None:
    for height, width in ((240, 180), (187, 333), (64, 1), (800, 1066)):
        images = torch.zeros(3, height, width, dtype=torch.bool)
        images[1, height * 3 // 4 :] = images[1, :, width // 2 :] = True
        images[2] = torch.rand(height, width) < 0.5
        size = (-(-height // stride), -(-width // stride))
        expected = F.interpolate(images[:, None].float(), size=list(size)).bool()[:, 0]
        assert torch.equal(shrink_mask(images, size), expected)
