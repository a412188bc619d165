"""Dynamic batching: images of several requests that share a forward pass."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from querybox.inference.detections import Detections
from querybox.inference.predict import Input


class Key(NamedTuple):
    """What the images of a batch have in common, so that none is padded and they are postprocessed together."""

    shape: tuple[int, ...]
    threshold: float
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An image that waits for the model."""

    image: Input
    threshold: float
    top_k: int
    result: Future[Detections] = field(default_factory=Future)
    """Cancelled if the client has disconnected or its time is over."""
    arrived: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> Key:
        """Jobs with equal keys can share a forward pass."""
        return Key(tuple(self.image.pixels.shape), self.threshold, self.top_k)


class Batches:
    """A queue that is filled with jobs and emptied in batches; used by several threads.

    A batch is due when it is full, when its first job has waited for `max_wait`, or when the queue is closed. Of the
    batches that are due, the one whose first job has waited longest is next. Nothing waits longer for a full batch
    than `max_wait`, and while all workers are busy, batches fill by themselves.
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        """Create an empty queue; see `ServingSettings` for the limits."""
        self.max_batch = max_batch
        self.max_wait = max_wait
        self._groups: dict[Key, deque[Job]] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> None:
        """Add a job.

        Raises:
            RuntimeError: The queue is closed.
        """
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._groups.setdefault(job.key, deque()).append(job)
            self._changed.notify()

    def close(self) -> None:
        """Accept no more jobs; `take` returns those that are left, and then None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        """Return the number of jobs that wait."""
        with self._changed:
            return sum(map(len, self._groups.values()))

    def take(self) -> list[Job] | None:
        """Return the next batch, and wait for one; None if the queue is closed and empty."""
        with self._changed:
            while True:
                self._drop_cancelled()
                if not self._groups:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                due = {key: self._due(jobs) for key, jobs in self._groups.items()}
                key = min(due, key=lambda each: (due[each], self._groups[each][0].arrived))
                if due[key] == 0:
                    return self._pop(key)
                self._changed.wait(due[key] - time.monotonic())

    def _due(self, jobs: deque[Job]) -> float:
        """Return when a group is to be computed; 0 if it is due now."""
        if self._closed or len(jobs) >= self.max_batch:
            return 0.0
        due = jobs[0].arrived + self.max_wait
        return due if due > time.monotonic() else 0.0

    def _pop(self, key: Key) -> list[Job]:
        jobs = self._groups[key]
        batch = [jobs.popleft() for _ in range(min(self.max_batch, len(jobs)))]
        if not jobs:
            del self._groups[key]
        if self._groups:
            self._changed.notify()  # another worker can wait for the remaining jobs while this one computes
        return batch

    def _drop_cancelled(self) -> None:
        for key, jobs in list(self._groups.items()):
            if any(job.result.cancelled() for job in jobs):
                self._groups[key] = jobs = deque(job for job in jobs if not job.result.cancelled())
            if not jobs:
                del self._groups[key]
