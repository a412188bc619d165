"""The layout of the ``state_dict()`` of a detector of querybox, without its settings."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.structures import Preprocessing

OWN = Layout(
    name="querybox's state_dict()",
    modules={part: part for part in ("backbone", "neck", "encoder", "queries", "decoder", "denoising")},
    preprocessing=Preprocessing(),
)
