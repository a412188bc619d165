"""Tracking: which detections in the frames of a video are the same object.

Boxes alone are compared, so that an object keeps its number if its class changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch

from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.frame_times import FrameTimes
from querybox.inference.live import LiveStream
from querybox.inference.sources import Frame, Pixels, is_video
from querybox.inference.trackers import TrackerName, make_tracker

if TYPE_CHECKING:
    from trackers.core.base import BaseTracker

NOMINAL_RATE = 30.0
"""Frame rate for which the defaults of the trackers are meant; frames of a live source have timestamps."""
LOST = 1.0
"""Seconds without a detection after which a track ends."""
MIN_LOST_FRAMES = 2
"""Minimum number of frames, at the usual rate, for which a track lasts without a detection, also at a low rate."""


class PresentationTimes:
    """The presentation times of frames, from where they are read to where their detections are tracked."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, float | None]] = deque()

    def recorded(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames, and record the time of each."""
        for frame in frames:
            if frame.is_last:
                self._waiting.append((frame.source, frame.seconds))
            yield frame

    def take(self, source: str) -> float | None:
        """Return the time of the next frame of this name; those before it, which had no result, are dropped."""
        while True:
            name, seconds = self._waiting.popleft()
            if name == source:
                return seconds


def require_tracking(name: TrackerName, sources: Sequence[Path | Pixels | LiveStream]) -> None:
    """Check that objects can be tracked.

    Raises:
        ConfigError: There is no tracker of this name, or a source is not a video.
        MissingExtraError: The package trackers is not installed.
    """
    if name not in get_args(TrackerName):
        raise ConfigError(f"predict got track={name!r}; expected one of {', '.join(get_args(TrackerName))}")
    for source in sources:
        if not isinstance(source, LiveStream) and not is_video(source):
            image = source if isinstance(source, Path) else "an image in memory"
            raise ConfigError(
                f"{image}: objects are tracked from frame to frame of a video, and this is an image; expected videos: "
                "make a video of the images, or omit the tracking"
            )
    make_tracker(name, NOMINAL_RATE, 0.5)


def tracked(
    results: Iterable[Detections], times: PresentationTimes, name: TrackerName, threshold: float
) -> Iterator[Detections]:
    """Yield the detections of videos with their `Detections.track_ids`, which begin at 1 in each video.

    A detection that scores less than `threshold` is dropped, unless it continues a track.

    Args:
        results: The detections of the frames of one video after the other, which score at least `lowest_score`.
        times: Times of the frames that the results are of.
        name: The tracker.
        threshold: Score from which a detection begins a track (0-1).
    """
    current, last = "", -1
    for detections in results:
        video, _, number = detections.source.rpartition("#")
        if video != current or int(number) <= last:
            frames = FrameTimes(Path(video)) if detections.time is None else None
            rate = NOMINAL_RATE if frames is None else float(frames.rate)
            rounded = detections.scores.new_tensor(threshold).item()  # as where scores are compared with it
            tracker = make_tracker(name, rate, rounded)
            if frames is not None and not frames.even:
                tracker.maximum_time_without_update = max(LOST, MIN_LOST_FRAMES / float(frames.rate))
        current, last = video, int(number)
        seconds = times.take(detections.source)
        seconds = detections.time if frames is None else frames.next(seconds)
        with_ids = replace(detections, track_ids=next_ids(tracker, detections, seconds))
        assert with_ids.track_ids is not None
        yield with_ids.where((with_ids.scores >= threshold) | (with_ids.track_ids > 0))


def next_ids(tracker: BaseTracker, detections: Detections, seconds: float | None) -> torch.Tensor:
    """Return the track of each detection of the next frame, 1, 2 ..., or 0 for none.

    Args:
        tracker: The tracker of the video.
        detections: Those of the frame.
        seconds: Time of the frame; None in a video whose frames are even.
    """
    import supervision

    found = supervision.Detections(
        xyxy=detections.boxes_xyxy.numpy(),
        confidence=detections.scores.numpy(),
        class_id=detections.labels.numpy(),
        data={"row": np.arange(len(detections))},  # trackers change the order
    )
    result = tracker.update(found, timestamp=seconds)
    ids = torch.zeros(len(detections), dtype=torch.long, device="cpu")
    if len(result):
        assert result.tracker_id is not None
        ids[torch.from_numpy(result.data["row"])] = torch.from_numpy(result.tracker_id) + 1
    return ids
