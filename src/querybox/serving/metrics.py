"""Measurements for Prometheus: requests by status and their duration, batch sizes, and images in progress."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Upper bounds of the histogram of durations, in seconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Upper bounds of the histogram of batch sizes."""
MEASURED = "/predict"
"""The route whose requests are measured."""


class Metrics:
    """The measurements of one server.

    Attributes:
        requests: Number of requests to predict, by HTTP status; 499 if the client has disconnected.
        seconds: Duration of the requests that were answered with detections.
        batch_sizes: Number of images in each forward pass.
        in_progress: Number of images that are being received, are queued, or are in the model.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time and open files
        self.requests = Counter(
            "querybox_requests", "Requests to predict, by status.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "querybox_request_seconds",
            "Duration of requests that were answered with detections.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.batch_sizes = Histogram(
            "querybox_batch_images", "Images in a forward pass.", registry=self.registry, buckets=SIZES
        )
        self.in_progress = Gauge(
            "querybox_images_in_progress",
            "Images that are being received, are queued, or are in the model.",
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all measurements in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that counts and times requests to predict."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] != MEASURED:
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(message["status"]).inc()
                if message["status"] == 200:
                    self.metrics.seconds.observe(time.perf_counter() - start)
            await send(message)

        await self.app(scope, receive, send_and_record)
