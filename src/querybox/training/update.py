"""What one update of the weights reports, and why training ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StopReason = Literal["epochs", "patience", "time", "signal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The statistics of one update, over all processes."""

    losses: dict[str, float]
    """Weighted losses by name, averaged over processes."""
    grad_norm: float
    """Total norm of the gradients of all trained parameters, before clipping."""
    images: int
    """Number of images."""
    unreadable: int
    """Number of images that could not be read."""
    seconds: float
    """Duration of the run so far, averaged over processes, so that all use the same learning rate."""
    stop: StopReason | None
    """Set if any process received a stop request or exceeded the time limit."""
