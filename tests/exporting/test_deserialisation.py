from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._export.serde.serialize import GraphModuleDeserializer
from torch.export import Dim

from querybox.exporting import deserialisation
from querybox.exporting.deserialisation import sizes_parsed_once


class Halving(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        smaller = images[..., ::2, ::2].relu()
        return smaller.flatten(2) * 2 + smaller.shape[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "halving.pt2"
    sizes = {2: Dim("height", min=4, max=64), 3: Dim("width", min=4, max=64)}
    torch.export.save(
        torch.export.export(Halving(), (torch.zeros(1, 3, 8, 12),), dynamic_shapes=[sizes]), path
    )
    return path


def description(path: Path) -> list[str]:
    program = torch.export.load(path)
    return [str(program), *(f"{node}: {node.meta.get('val')}" for node in program.graph.nodes)]


def test_a_program_is_read_as_pytorch_reads_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    plain = GraphModuleDeserializer._parse_sym_expr

    def parse(self: Any, *given: Any) -> Any:
        parsed.append(given)
        return plain(self, *given)

    monkeypatch.setattr(GraphModuleDeserializer, "_parse_sym_expr", parse)
    wanted = description(path)
    assert len(set(parsed)) < len(parsed)
    parsed.clear()
    with sizes_parsed_once():
        assert description(path) == wanted
    assert len(set(parsed)) == len(parsed) > 0
    assert GraphModuleDeserializer._parse_sym_expr is parse


def test_a_pytorch_that_parses_sizes_otherwise_reads_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = description(path)
    monkeypatch.setattr(deserialisation, "PARSE", "_parse_otherwise")
    with sizes_parsed_once():
        assert description(path) == wanted
