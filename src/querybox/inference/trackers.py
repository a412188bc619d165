"""The trackers of the package `trackers`, by name.

This module imports no PyTorch, so that the command line can name them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from querybox.errors import requires_extra

if TYPE_CHECKING:
    from trackers.core.base import BaseTracker

TrackerName: TypeAlias = Literal["bytetrack", "sort", "ocsort"]

LOW_SCORE = 0.1
"""Score from which ByteTrack continues a track (Zhang et al., "ByteTrack", 2022)."""


def lowest_score(name: TrackerName, threshold: float) -> float:
    """Return the score from which detections are passed to a tracker."""
    return min(LOW_SCORE, threshold) if name == "bytetrack" else threshold


def make_tracker(name: TrackerName, rate: float, threshold: float) -> BaseTracker:
    """Return a tracker for a video with `rate` frames a second. A track ends a second after its last detection.

    Raises:
        MissingExtraError: The package trackers is not installed.
    """
    with requires_extra("track", "tracking"):
        import trackers
    if name == "sort":
        return trackers.SORTTracker(frame_rate=rate, track_activation_threshold=threshold)
    if name == "ocsort":
        return trackers.OCSORTTracker(frame_rate=rate, high_conf_det_threshold=threshold)
    return trackers.ByteTrackTracker(
        frame_rate=rate, track_activation_threshold=threshold, high_conf_det_threshold=threshold
    )
