"""Traced programs in operations that converters have functions for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from unittest import mock

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from querybox.detector import Detector
from querybox.exporting import onnx, openvino
from querybox.exporting.card import Card
from querybox.exporting.expansion import expand
from querybox.exporting.lowering import lower
from querybox.exporting.promotion import promote, skip_promotion

GET = "<built-in function getitem>"


class Module(nn.Module):
    """A function of a tensor."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(Module(function), (x,), strict=False)


def as_it_is(graph: Graph, node: Node) -> None:
    """Replace nothing for a converter."""


def operations(program: ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("function", "dtype", "expected"),
    [
        (lambda x: (x * 2).relu_(), torch.float32, {"aten.mul.Tensor", "aten.relu.default"}),
        (lambda x: (x + 1).view(-1).mul_(x.view(-1)), torch.float32, {"aten.mul.Tensor", "aten.add.Tensor"}),
        (lambda x: 1.5 - x, torch.float32, {"aten.neg.default", "aten.add.Scalar"}),
        (lambda x: x.detach().to(torch.int64), torch.float32, {"aten._to_copy.default"}),
        (lambda x: x.to(torch.float32) + 1, torch.float32, {"aten.add.Tensor"}),
        (lambda x: x & (x > 0), torch.bool, {"aten.bitwise_and.Tensor", "aten.gt.Scalar"}),
    ],
)
def test_replaced(function: Callable[[Tensor], Tensor], dtype: torch.dtype, expected: set[str]) -> None:
    x = torch.tensor([[-1.5, 0.0, 2.5, 4.0]]).to(dtype)
    program = traced(function, x)
    before = operations(program)
    lowered = lower(program, as_it_is)
    assert operations(lowered) - {"aten.view.default"} == expected
    assert lowered.run_decompositions() is lowered
    torch.testing.assert_close(lowered.module()(x), function(x), rtol=0, atol=0)
    assert operations(program) == before


def seen_in_a_view(x: Tensor) -> Tensor:
    y = x * 2
    view = y.view(-1)
    y.relu_()
    return view


def overwritten_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).relu_()
    return y


def combined_through_a_view(x: Tensor) -> Tensor:
    y = x > 0
    view = y.view(-1)
    view &= x.view(-1) < 2
    return y


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (seen_in_a_view, "aten.relu_.default"),
        (overwritten_through_a_view, "aten.relu_.default"),
        (combined_through_a_view, "aten.__iand__.Tensor"),
    ],
)
def test_what_is_read_afterwards_is_overwritten(function: Callable[[Tensor], Tensor], operation: str) -> None:
    x = torch.tensor([[-1.5, 0.0, 0.5, 2.5]])
    lowered = lower(traced(function, x), as_it_is)
    assert operation in operations(lowered)
    torch.testing.assert_close(lowered.module()(x), function(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            lambda x: F.conv2d(x, x[:, :, :2, :3], None, 2, (1, 0)),
            {"aten.slice.Tensor", "aten.convolution.default"},
        ),
        (lambda x: F.max_pool2d(x, 2), {"aten.max_pool2d_with_indices.default", GET}),
        (lambda x: F.layer_norm(x, (8,)), {"aten.native_layer_norm.default", GET}),
        (
            lambda x: F.group_norm(x, 2, x[0, :, 0, 0], x[0, :, 0, 1], eps=0.1),
            {"aten.native_group_norm.default", GET, "aten.select.int", "<built-in function mul>"},
        ),
        (lambda x: F.group_norm(x[0], 2), {"aten.native_group_norm.default", GET, "aten.select.int"}),
        (lambda x: x.softmax(-1), {"aten._softmax.default"}),
        (lambda x: x.flatten(1, -2).flatten(), {"aten.view.default"}),
        (lambda x: x.unflatten(-1, (2, -1)), {"aten.view.default"}),
        (
            lambda x: torch.cat(x.chunk(3, -1)[::-1], -1),
            {"aten.split_with_sizes.default", GET, "aten.cat.default"},
        ),
        (
            lambda x: torch.cat(x.split(3, 1)[::-1], 1),
            {"aten.split_with_sizes.default", GET, "aten.cat.default"},
        ),
        (lambda x: torch.stack(x.unbind(-1)[::-1]), {"aten.select.int", "aten.stack.default"}),
        (
            lambda x: (x > 0).all(1, keepdim=True),
            {"aten.gt.Scalar", "aten.logical_not.default", "aten.any.dim"},
        ),
        (lambda x: x[:, :1].expand_as(x), {"aten.slice.Tensor", "aten.expand.default"}),
        (lambda x: F.pad(x, (1, 0, 2, -1)), {"aten.constant_pad_nd.default"}),
        (lambda x: F.pad(x, (1, 1, 2, 0), "reflect"), {"aten.pad.default"}),
        (lambda x: F.relu6(4 * x), {"aten.mul.Tensor", "aten.hardtanh.default"}),
        (lambda x: F.dropout(x, training=False), set()),
        (
            lambda x: F.grid_sample(x, x[:, :, :2].permute(0, 1, 3, 2), align_corners=False),
            {"aten.slice.Tensor", "aten.permute.default", "aten.grid_sampler_2d.default"},
        ),
    ],
)
def test_operations_of_modules_are_expanded(function: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    x = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    lowered = lower(traced(function, x), expand)
    assert operations(lowered) == expected
    torch.testing.assert_close(lowered.module()(x), function(x))


@pytest.mark.parametrize(
    ("function", "conversions"),
    [
        (lambda x: x * 2, 0),
        (lambda x: x.long() * 1.5, 2),
        (lambda x: x * x.long() + (x > 0), 3),
        (lambda x: x.long() < x, 2),
        (lambda x: x.long() > 1.5, 2),
        (lambda x: x.long() > 1, 1),
        (lambda x: x > 1, 0),
        (lambda x: (x > 1) == 1, 1),
        (lambda x: torch.cat([x, x.long()]), 2),
        (lambda x: torch.cat([x > 0, x > 1]), 0),
        (lambda x: torch.where(x > 0, x, x.long()), 2),
        (lambda x: x.long().masked_fill(x > 0, 3), 1),
    ],
)
def test_conversions_of_types_are_explicit(function: Callable[[Tensor], Tensor], conversions: int) -> None:
    x = torch.tensor([[-1.5, 0.0, 2.5, 4.0]])
    lowered = lower(traced(function, x), promote)
    nodes = lowered.graph.nodes
    assert sum(node.target is torch.ops.aten._to_copy.default for node in nodes) == conversions
    torch.testing.assert_close(lowered.module()(x), function(x), rtol=0, atol=0)
    program = torch.onnx.export(skip_promotion(lowered), dynamo=True, verbose=False, optimize=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), function(x))


class Pixels(nn.Module):
    """What is converted of a detector: inputs and outputs by name, and an operation that has to be decomposed."""

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        x = torch.nan_to_num(pixels / sizes.sum())
        return x, x + 1, x + 2, x + 3, x + 4


@pytest.mark.parametrize(("format_", "converter"), [(onnx, "to_onnx"), (openvino, "to_openvino")])
def test_operations_that_are_not_known_are_decomposed(
    format_: Any, converter: str, deformable: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = torch.zeros(1, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96]])
    program = torch.export.export(Pixels(), inputs, strict=False)
    card = Card.of(deformable, "float32", (64, 96))
    conversions = mock.Mock(wraps=getattr(format_, converter))
    monkeypatch.setattr(format_, converter, conversions)
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    format_.convert(program, card)
    assert conversions.call_count == 2
    assert (root.level, root.filters, root.handlers) == before
