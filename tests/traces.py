"""Traces for exports, made once for all exports of a model in a session: a trace takes seconds."""

from __future__ import annotations

import hashlib

from torch.export import ExportedProgram

from querybox.detector import Detector
from querybox.exporting.graph import trace

TRACES: dict[str, ExportedProgram] = {}
"""By the digest of all that a trace depends on."""


def trace_once(
    detector: Detector, size: tuple[int, int] | None = None, *, padded: bool = True
) -> ExportedProgram:
    """Return what `querybox.exporting.graph.trace` returns, from memory if an equal detector was traced before."""
    facts = (detector.recipe, detector.preprocessing, detector.class_rows, size, padded)
    digest = hashlib.sha256(repr((*facts, detector)).encode())
    for name, tensor in detector.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    key = digest.hexdigest()
    if key not in TRACES:
        TRACES[key] = trace(detector, size, padded=padded)
    return TRACES[key]
