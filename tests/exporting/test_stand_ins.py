from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from querybox.exporting.stand_ins import StandIns, restore

TOKENS = torch.rand(2, 5, 6)
TURNED = torch.rand(2, 6, 4, 5).permute(0, 2, 3, 1)
"""A map whose features are its last axis, but not in memory."""
CALLS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, weight: F.linear(x, weight),
    lambda x, weight: F.linear(x, weight, weight[:, 0]),
    lambda x, weight: F.layer_norm(x, (6,)),
    lambda x, weight: F.layer_norm(x, [6], weight[0], eps=1e-6),
    lambda x, weight: F.relu(x),
    lambda x, weight: F.relu(x.clone(), inplace=True),
    lambda x, weight: x.clamp(0.2, 0.7),
    lambda x, weight: x.clamp(max=0.7),
    lambda x, weight: x.clamp(min=weight[0, 0]),
    lambda x, weight: x.long().clamp(min=0.5),
    lambda x, weight: F.relu6(x),
    lambda x, weight: F.relu6(x.clone(), inplace=True),
    lambda x, weight: F.grid_sample(x.expand(3, *x.shape[-3:]), weight.view(3, 3, 1, 2), align_corners=True),
    lambda x, weight: F.grid_sample(x.expand(3, *x.shape[-3:]), weight.view(3, 3, 1, 2), "nearest"),
]


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("x", [TOKENS, TURNED[:1], TURNED[0].double()], ids=["tokens", "map", "float64"])
def test_results_are_like_those_of_pytorch(call: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> None:
    weight = torch.rand(3, 6, dtype=x.dtype)
    expected = call(x, weight)
    with FakeTensorMode() as mode, StandIns():
        result = call(mode.from_tensor(x), mode.from_tensor(weight))
    assert (result.shape, result.stride(), result.dtype) == (
        expected.shape,
        expected.stride(),
        expected.dtype,
    )


def test_a_trace_has_operations_of_pytorch_alone() -> None:
    class Layers(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
            return (
                F.linear(x, weight, weight[:, 0]),
                F.layer_norm(x, (6,), weight[0], eps=0.1),
                F.relu6(3 * x),
                F.relu(x - 0.5).clamp(max=0.3).clamp(0.1),
            )

    weight = torch.rand(3, 6)
    with StandIns():
        program = torch.export.export(Layers(), (TOKENS, weight))
    restore(program.graph)
    program.graph_module.recompile()
    assert "querybox" not in program.graph_module.code
    for ours, pytorch in zip(program.module()(TOKENS, weight), Layers()(TOKENS, weight), strict=True):
        assert torch.equal(ours, pytorch)
