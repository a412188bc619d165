"""Sampling from a table is sampling from maps."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from querybox.fast.sampling import sample
from querybox.modules.deformable_attention import sample as plain_sample
from querybox.modules.encoder import levels_from_masks

POINTS = (3, 1)


def test_points_anywhere_are_seen_as_on_the_maps() -> None:
    """Inside, at the middle of cells, on edges, just outside and far away; the coarse map is the wider one."""
    torch.manual_seed(0)
    shapes = ((4, 3), (2, 5))
    levels = levels_from_masks([torch.zeros(2, *shape, dtype=torch.bool) for shape in shapes])
    value = torch.randn(2, 22, 3, 8)
    places = 3 * torch.rand(2, 64, 3, 4, 2) - 1
    places[:, :4] = torch.tensor([0.0, 1.0, 1 / 6, 1.1])[:, None, None, None]
    places[:, 4:6] *= 1e4
    weight = torch.rand(2, 64, 3, 4)
    expected = plain_sample(value, shapes, places, weight, POINTS)
    assert_close(sample(value.flatten(2), levels, places, weight, POINTS), expected, rtol=0, atol=1e-5)


def test_gradients_are_those_of_maps() -> None:
    """Inside, outside and far away, but not on edges, where left and right differ."""
    torch.manual_seed(0)
    shapes = ((4, 3), (2, 5))
    levels = levels_from_masks([torch.zeros(2, *shape, dtype=torch.bool) for shape in shapes])
    value = torch.randn(2, 22, 3, 8, requires_grad=True)
    places = (3 * torch.rand(2, 64, 3, 4, 2) - 1).requires_grad_()
    weight = torch.rand(2, 64, 3, 4, requires_grad=True)
    inputs = (value, places, weight)
    expected = plain_sample(value, shapes, places, weight, POINTS)
    got = sample(value.flatten(2), levels, places, weight, POINTS)
    direction = torch.randn_like(got)
    assert_close(
        torch.autograd.grad(got, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        rtol=0,
        atol=1e-4,
    )
