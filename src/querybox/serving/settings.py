"""The settings of a server: its limits, batching, and defaults."""

from __future__ import annotations

from dataclasses import dataclass

from querybox.arguments import require_number
from querybox.data.image import MAX_PIXELS

MAX_FILES = 16
"""Maximum number of images in a request."""
MAX_TOP_K = 10_000
"""Maximum number of detections of an image that a request may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """The settings of a server; the defaults are those of `querybox serve`."""

    threshold: float = 0.5
    """Minimum score of detections (0-1), unless a request sets another one."""
    top_k: int = 100
    """Maximum number of detections per image, unless a request sets another one."""
    max_batch: int | None = None
    """Maximum number of images in a forward pass; None for 8 on an accelerator and 1 on a CPU."""
    max_wait: float | None = None
    """Maximum time in seconds that an image waits for others to share a forward pass; None for 0.005."""
    workers: int = 1
    """Number of threads that run the model; they share the processor cores."""
    queue: int = 32
    """Maximum number of images that are being received, are queued, or are in the model."""
    max_bytes: int = 16 * 2**20
    """Maximum size of the body of a request in bytes."""
    max_pixels: int = 50_000_000
    """Maximum number of pixels of an image, which is checked before it is decoded."""
    timeout: float = 30.0
    """Seconds from the header of a request to its answer."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ConfigError: A number is out of its range.
        """
        require_number("serve", "threshold", self.threshold, 0, 1)
        require_number("serve", "top_k", self.top_k, 1, MAX_TOP_K, whole=True)
        if self.max_batch is not None:
            require_number("serve", "max_batch", self.max_batch, 1, 1024, whole=True)
        if self.max_wait is not None:
            require_number("serve", "max_wait", self.max_wait, 0, 10)
        require_number("serve", "workers", self.workers, 1, 256, whole=True)
        require_number("serve", "queue", self.queue, 1, 4096, whole=True)
        require_number("serve", "max_bytes", self.max_bytes, 1024, 2**30, whole=True)
        require_number("serve", "max_pixels", self.max_pixels, 1, MAX_PIXELS, whole=True)
        require_number("serve", "timeout", self.timeout, 0.1, 3600)

    @property
    def files(self) -> int:
        """Maximum number of images in a request."""
        return min(MAX_FILES, self.queue)
