"""The layout of the ``state_dict()`` of a detector of querybox, without its settings."""

from __future__ import annotations

from querybox.models.layouts.layout import Layout
from querybox.structures import Preprocessing

PARTS = ("backbone", "neck", "encoder", "queries", "decoder", "denoising", "mask_head")

OWN = Layout(
    name="querybox's state_dict()",
    modules={part: part for part in PARTS},
    preprocessing=Preprocessing(),
)
