"""The method `predict` of a detector, of its optimised copy, and of an exported model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from querybox.errors import ImageError
from querybox.inference.engine import Engine

if TYPE_CHECKING:
    from querybox.data.tiling import Tile
    from querybox.inference.detections import Detections
    from querybox.inference.sources import Source
    from querybox.inference.trackers import TrackerName


class Predictor:
    """Mixin that adds `predict` to an `Engine`: a detector, its optimised copy, an exported model."""

    def predict(
        self: Engine,
        sources: Source | Sequence[Source],
        *,
        threshold: float = 0.5,
        top_k: int = 100,
        nms: float | None = None,
        tile: Tile = None,
        overlap: float = 0.2,
        track: TrackerName | None = None,
        batch_size: int = 8,
        on_error: Callable[[ImageError], object] | None = None,
    ) -> list[Detections]:
        """Detect objects in files, folders, videos or images in memory.

        Arguments and errors are those of `querybox.predict`, which yields the detections one by one.
        """
        # Takes half a second, which training need not wait for.
        from querybox.inference.predict import predict

        detections = predict(
            self,
            sources,
            threshold=threshold,
            top_k=top_k,
            nms=nms,
            tile=tile,
            overlap=overlap,
            track=track,
            batch_size=batch_size,
            on_error=on_error,
        )
        return list(detections)
