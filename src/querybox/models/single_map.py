"""Base class of kinds that use a single feature map, the last of the backbone: DETR and Conditional DETR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from querybox.models.layouts.layout import Layout
from querybox.models.recipe import Positive, Recipe
from querybox.models.unseen import Unseen
from querybox.modules.position import LearnedPositionEncoding, SinePositionEncoding


class SingleMap(Recipe):
    """Settings of kinds that use a single feature map."""

    unseen: ClassVar[Mapping[str, Unseen]] = {
        **Recipe.unseen,
        "dilation": Unseen(
            "the last stage is not dilated",
            "DC5",
            "pass dilation=True if it is (DC5), or convert the file with --dilation",
            "its last stage is dilated, which tensors do not show: pass --dilation there",
        ),
    }

    stride: Positive = 32
    """Stride in pixels of the feature map."""
    dilation: bool = False
    """Dilate the last stage of the backbone instead of downsampling (DC5); requires `stride` 16."""
    position: Literal["sine", "learned"] = "sine"

    @property
    def finest_stride(self) -> int:
        """Stride in pixels of the feature map."""
        return self.stride

    @property
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with one row per query."""
        return ("queries.position", "queries.content")

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Infer the settings; the stride follows from the dilation."""
        known = super().infer(state, stated)
        return {**known, "stride": 16} if known.get("dilation") else known

    @classmethod
    def infer_specific(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:  # noqa: ARG003 - heads cannot be inferred
        """Infer the settings specific to these kinds; see `Recipe.infer_specific`."""
        queries, width = state["queries.position"].shape
        return {
            "position": "learned" if "encoder.position.rows" in state else "sine",
            "width": width,
            "queries": queries,
        }

    def huggingface_config(self) -> dict[str, Any]:
        """Return the Hugging Face ``config.json`` of the model."""
        return {
            **super().huggingface_config(),
            "dilation": self.dilation,
            "position_embedding_type": self.position,
        }

    def unsupported_settings(self, layout: Layout) -> list[str]:
        """Return the names of settings whose values the layout's system does not support."""
        unsupported = super().unsupported_settings(layout)
        if self.stride != (16 if self.dilation else 32):
            unsupported.append("stride")
        # MMDetection also dilates the first block of the stage, so its results would differ.
        if self.dilation and layout in (self.layouts.get("mmdet2"), self.layouts.get("mmdet3")):
            unsupported.append("dilation")
        return unsupported

    def build_position(self) -> nn.Module:
        """Build the positional encoding."""
        return {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}[self.position](self.width)
