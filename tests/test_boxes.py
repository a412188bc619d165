"""Box formats round-trip; GIoU keeps its bounds, is symmetric, and is torchvision's."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import generalized_box_iou

from querybox.boxes import giou, to_cxcywh, to_xyxy

numbers = st.floats(-1000, 1000, width=32)
sides = st.floats(0, 1000, width=32)
boxes = st.lists(st.tuples(numbers, numbers, sides, sides), min_size=1, max_size=8).map(torch.tensor)


@given(boxes)
def test_formats_round_trip(cxcywh: Tensor) -> None:
    assert_close(to_cxcywh(to_xyxy(cxcywh)), cxcywh, rtol=1e-5, atol=1e-3)


@given(boxes, boxes)
def test_giou_bounds_and_symmetry(a: Tensor, b: Tensor) -> None:
    a_xyxy, b_xyxy = to_xyxy(a.double())[:, None], to_xyxy(b.double())
    value = giou(a_xyxy, b_xyxy)
    assert value.isfinite().all()
    assert (value >= -1 - 1e-9).all()
    assert (value <= 1 + 1e-9).all()
    assert_close(value, giou(b_xyxy, a_xyxy))


def test_giou_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (to_xyxy(torch.rand(50, 4, generator=generator, dtype=torch.float64) + 0.01) for _ in range(2))
    assert_close(giou(a[:, None], b), generalized_box_iou(a, b))


def test_giou_does_not_change_when_axes_are_scaled() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (to_xyxy(torch.rand(50, 4, generator=generator, dtype=torch.float64)) for _ in range(2))
    scale = torch.tensor([640.0, 480.0, 640.0, 480.0], dtype=torch.float64)
    assert_close(giou(a * scale, b * scale), giou(a, b))


def test_giou_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(3, 4)
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    assert_close(giou(a, b), torch.tensor([1.0, 1 / 3, -1 / 3]))
    empty = torch.zeros(1, 4)
    assert giou(empty, empty).tolist() == [-1]
