"""The options of detection, which `predict`, `evaluate` and collections share."""

from __future__ import annotations

from dataclasses import dataclass

from querybox.arguments import require_number
from querybox.data.settings import OVERLAP
from querybox.data.tiling import Tile


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is detected; see `querybox.inference.predict.predict`."""

    threshold: float = 0.5
    top_k: int = 100
    nms: float | None = None
    tile: Tile = None
    """Checked with `overlap` by `querybox.data.tiling.Tiling.of`."""
    overlap: float = OVERLAP
    batch_size: int = 8

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: One is out of its range.
        """
        require_number("predict", "threshold", self.threshold, 0, 1)
        require_number("predict", "top_k", self.top_k, 1, whole=True)
        require_number("predict", "batch_size", self.batch_size, 1, whole=True)
        if self.nms is not None:
            require_number("predict", "nms", self.nms, 0, 1)
