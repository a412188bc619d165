"""Inference: normalised images in, class logits and boxes out, by every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.goals import Goal, faster
from benchmarks.measure import Row, Side, Work
from benchmarks.setup import Setup, detector, images
from querybox.structures import ImageBatch

PLAIN = "querybox plain"
SIZES = ((480, 640), (800, 1066))
"""Height and width in pixels."""
GROWTH = ((240, 320), (320, 426), (480, 640), (640, 853), (800, 1066), (1066, 1421))


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for each precision, batch and size, then the curve over pixels."""
    yield from ()


def plain(batch: ImageBatch) -> Work:
    return answering(detector(), batch)


def answering(engine: Callable[[ImageBatch], Any], batch: ImageBatch) -> Work:
    """Return a forward pass of one of our engines."""

    def work() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            answer = engine(batch).layers[-1]
        return answer.logits, answer.boxes

    return work
