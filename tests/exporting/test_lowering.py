"""Traced programs in operations that ONNX has functions for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import onnx_ir
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from traces import trace_once

from querybox.detector import Detector
from querybox.exporting import lowering, onnx
from querybox.exporting.card import Card
from querybox.exporting.lowering import lower


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
    lowered = lower(program)
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
    lowered = lower(traced(function, x))
    assert operation in operations(lowered)
    torch.testing.assert_close(lowered.module()(x), function(x), rtol=0, atol=0)


def test_operations_that_are_not_known_are_decomposed(
    deformable: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, card = trace_once(deformable, (64, 96)), Card.of(deformable, "float32", (64, 96))
    conversions = mock.Mock(wraps=onnx.to_onnx)
    monkeypatch.setattr(onnx, "to_onnx", conversions)
    fast = onnx.convert(program, card)
    assert conversions.call_count == 1
    monkeypatch.setattr(lowering, "replace", lambda graph, node: None)
    decomposed = onnx.convert(program, card)
    assert conversions.call_count == 3
    for model in (fast, decomposed):
        assert [value.name for value in model.graph.outputs] == list(card.outputs)
        assert os.fsencode(Path(torch.__file__).parent) not in onnx_ir.to_proto(model).SerializeToString()
