"""What kinds have in common that see one feature map of the backbone, its last: DETR and its closest relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from querybox.models.layouts.layout import Layout
from querybox.models.recipe import Positive, Recipe
from querybox.modules.position import LearnedPositionEncoding, SinePositionEncoding


class SingleMap(Recipe):
    """The settings of kinds that see one map."""

    stride: Positive = 32
    """Pixels a cell of the feature map that the encoder sees."""
    dilation: bool = False
    """Dilate the backbone's last stage (DC5); its stride is then 16."""
    position: Literal["sine", "learned"] = "sine"

    @property
    def finest_stride(self) -> int:
        """Pixels a cell of the map."""
        return self.stride

    @property
    def rows_by_query(self) -> tuple[str, ...]:
        """Tensors with a row for each query."""
        return ("queries.position", "queries.content")

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return all settings that are known; the stride follows from the dilation."""
        known = super().infer(state, stated)
        return {**known, "stride": 16} if known.get("dilation") else known

    @classmethod
    def infer_own(cls, state: Mapping[str, Tensor], heads: int) -> dict[str, Any]:  # noqa: ARG003 - no trace
        """Return the settings that only these kinds have, or show in this way."""
        queries, width = state["queries.position"].shape
        return {
            "position": "learned" if "encoder.position.rows" in state else "sine",
            "width": width,
            "queries": queries,
        }

    @classmethod
    def assumptions(cls, known: Mapping[str, Any], path: str) -> list[str]:
        """Say what is assumed of a checkpoint that leaves a setting open, a sentence each."""
        sentences = super().assumptions(known, path)
        if "dilation" not in known:
            doubt = ", although its name says DC5" if "dc5" in path.lower() else ""
            sentences.append(f"the last stage is not dilated{doubt}; pass dilation=True if it is (DC5)")
        return sentences

    def huggingface_config(self) -> dict[str, Any]:
        """Return what Hugging Face's ``config.json`` says of the model."""
        return {
            **super().huggingface_config(),
            "dilation": self.dilation,
            "position_embedding_type": self.position,
        }

    def unknown_to(self, layout: Layout) -> list[str]:
        """Name the settings whose value does not exist in the layout's system."""
        strange = super().unknown_to(layout)
        if self.stride != (16 if self.dilation else 32):
            strange.append("stride")
        # MMDetection also dilates the first block of the stage, so its numbers would be others.
        if self.dilation and layout in (self.layouts.get("mmdet2"), self.layouts.get("mmdet3")):
            strange.append("dilation")
        return strange

    def to_tell(self, layout: Layout, state: Mapping[str, Tensor]) -> list[str]:
        """Say what the layout's system has to be told before it loads our `state`, a sentence each."""
        sentences = super().to_tell(layout, state)
        if self.dilation:
            sentences.append("its last stage is dilated, which no tensor shows: pass --dilation there")
        return sentences

    def build_position(self) -> nn.Module:
        """Compose the positional encoding."""
        return {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}[self.position](self.width)
