"""What exports of a model have in common, made once in a session: traces and ONNX models, which take seconds each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.export import ExportedProgram

from querybox.detector import Detector
from querybox.exporting import graph
from querybox.exporting.card import Card
from querybox.exporting.graph import trace
from querybox.exporting.onnx import convert

TRACES: dict[str, ExportedProgram] = {}
"""By the digest of all that a trace depends on."""
CONVERTED: dict[int, tuple[ExportedProgram, Any]] = {}
"""ONNX models in float32 by the identity of the trace, which is kept so that no other gets its number."""


def trace_once(
    detector: Detector, size: tuple[int, int] | None = None, *, padded: bool = True
) -> ExportedProgram:
    """Return what `querybox.exporting.graph.trace` returns, from memory if an equal detector was traced before."""
    facts = (detector.recipe, detector.preprocessing, detector.class_rows, size, padded, graph.MAX_MASKS)
    digest = hashlib.sha256(repr((*facts, detector)).encode())
    for name, tensor in detector.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    key = digest.hexdigest()
    if key not in TRACES:
        TRACES[key] = trace(detector, size, padded=padded)
    return TRACES[key]


def convert_once(program: ExportedProgram, card: Card) -> Any:
    """Return what `querybox.exporting.onnx.convert` returns, from memory if this trace was converted before."""
    import onnx_ir

    if id(program) not in CONVERTED:
        CONVERTED[id(program)] = program, onnx_ir.to_proto(convert(program, card))
    return onnx_ir.from_proto(CONVERTED[id(program)][1])


@contextmanager
def made_once() -> Iterator[None]:
    """Context manager in which exports take traces and ONNX models from memory where they can."""
    with (
        mock.patch("querybox.exporting.write.trace", trace_once),
        mock.patch("querybox.exporting.onnx.convert", convert_once),
    ):
        yield
