"""The fast copies of the mask head against the head itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from querybox.fast.convolution import FusedLinear, use_fused_operators
from querybox.fast.fusion import fuse
from querybox.fast.masks import FusedMaskHead, SparseMaskHead, SparseMasks, StripMasks
from querybox.fast.replacement import replace_leaves
from querybox.levels import Levels
from querybox.mask_embeddings import MaskEmbeddings
from querybox.modules.masks import MaskHead
from querybox.structures import Memory, Predictions


def inputs(
    dtype: torch.dtype, scale: int = 2
) -> tuple[tuple[Predictions, ...], list[Tensor], list[Tensor], Memory]:
    """What a head is given, for two images whose map has 19 x 7 cells, each side `scale` times the encoder's."""
    shape = -(-19 // scale), -(-7 // scale)
    feature, coarse = torch.randn(2, 3, 19, 7, dtype=dtype), torch.randn(2, 8, *shape, dtype=dtype)
    maps = [each.contiguous(memory_format=torch.channels_last) for each in (feature, coarse)]
    shapes = (shape,)
    levels = Levels(
        shapes=shapes, sizes=torch.tensor(shapes).float(), valid_ratios=torch.ones(2, 1, 2), padding_mask=None
    )
    layers = tuple(
        Predictions(
            logits=torch.zeros(2, 6, 2), boxes=torch.zeros(2, 6, 4), content=torch.randn(2, 6, 8, dtype=dtype)
        )
        for _ in range(2)
    )
    memory = Memory(tokens=coarse.flatten(2).transpose(1, 2), padding_mask=None, levels=levels)
    return layers, maps[:1], maps[1:], memory


@pytest.mark.parametrize("count", [1, 5, 200])
def test_cells_at_points_are_those_of_the_whole_map(count: int) -> None:
    torch.manual_seed(0)
    head = MaskHead(3, 8, stride=8).double()
    given = inputs(torch.float64)
    points = 2.2 * torch.rand(2, count, 2).double() - 1.1  # some beyond the edges
    queries = [torch.tensor([[0, 5, 0], [3, 2, 1]]), torch.tensor([[4], [4]])]
    wanted = [torch.randn(2, len(query[0]), count).double() for query in queries]
    results = []
    for kind in (MaskHead, SparseMaskHead):
        head.__class__ = kind
        head.zero_grad()
        content = [layer.content for layer in given[0] if layer.content is not None]
        tensors = [*content, given[1][0], given[3].tokens]
        for tensor in tensors:
            tensor.requires_grad_(True).grad = None
        masks = [layer.masks for layer in head(*given)]
        assert all(isinstance(each, MaskEmbeddings if kind is MaskHead else SparseMasks) for each in masks)
        logits = list(masks[0].at_points([each for each in masks if each], queries, points))
        torch.stack([(each * one).sum() for each, one in zip(logits, wanted, strict=True)]).sum().backward()
        gradients = [each.grad for each in (*tensors, *head.parameters())]
        whole = masks[1].of_queries(slice(2, 6)).logits(torch.tensor([[3, 0], [1, 1]]))
        results.append((logits, gradients, whole, masks[0].shape))
    assert_close(*results)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_cells_in_windows_are_those_of_the_whole_map(scale: int) -> None:
    torch.manual_seed(0)
    head = MaskHead(3, 8, stride=4 * scale).eval()
    layers, maps, features, memory = inputs(torch.float32, scale)
    fast = copy.deepcopy(head).to(memory_format=torch.channels_last)
    fuse(fast)
    replace_leaves(fast, {MaskHead: FusedMaskHead})
    use_fused_operators(fast)
    assert type(fast) is FusedMaskHead
    assert isinstance(fast.block.pointwise, FusedLinear)
    assert fast.block.pointwise.activation is nn.GELU
    tokens = memory.tokens.clone()
    query = torch.tensor([[5, 0, 3], [1, 1, 1]])
    windows = [[(slice(2, 5), slice(0, 7)), (slice(17, 19), slice(3, 4))], [(slice(9, 9), slice(0, 0))]]
    assert fast.enlarged(features[0], maps[0]).is_contiguous(memory_format=torch.channels_last) or scale == 1
    with torch.inference_mode():
        wanted, found = (each(layers, maps, features, memory)[1].masks for each in (head, fast))
    assert isinstance(found, StripMasks)
    assert torch.equal(memory.tokens, tokens)
    logits = wanted.logits(query)
    for _ in range(2):  # cells are updated once
        parts = found.in_windows(query, windows)
        assert [len(each) for each in parts] == [2, 1]
        assert found.done.tolist() == [True, False, True, False, False]
        for image, each in enumerate(parts):
            for index, part in enumerate(each):
                assert_close(torch.from_numpy(part), logits[image, index][windows[image][index]])
    points = 2 * torch.rand(2, 9, 2) - 1
    assert_close(
        list(StripMasks.at_points([found], list(query[:, None]), points)),
        list(MaskEmbeddings.at_points([wanted], list(query[:, None]), points)),
    )
    assert found.done.all()
    assert_close(found.of_queries(slice(3, 6)).logits(query % 3), wanted.logits(3 + query % 3))
