"""From a request to its answer: a limit on images in progress, a deadline, and an answer for all images or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from querybox.errors import ConfigError, ImageError, PredictionError
from querybox.memory import is_out_of_memory
from querybox.serving.answers import Answer
from querybox.serving.metrics import Metrics
from querybox.serving.problems import ProblemError, unavailable
from querybox.serving.settings import ServingSettings
from querybox.serving.uploads import read_images
from querybox.serving.workers import Workers

T = TypeVar("T")


class Service:
    """Answers requests to predict.

    Attributes:
        model: The file or folder of the model.
        in_progress: Number of images that are being received, are queued, or are in the model.
    """

    def __init__(self, model: Path, workers: Workers, settings: ServingSettings, metrics: Metrics) -> None:
        self.model = model
        self.workers = workers
        self.settings = settings
        self.metrics = metrics
        self.in_progress = 0

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted."""
        return self.workers.alive and self.in_progress < self.settings.queue

    async def predict(self, request: Request, threshold: float | None, top_k: int | None) -> Answer:
        """Answer a request.

        Args:
            request: The request, of which the body is not read yet.
            threshold: Minimum score of detections (0-1); None for that of the settings.
            top_k: Maximum number of detections per image; None for that of the settings.

        Raises:
            ProblemError: It cannot be answered.
            ClientDisconnect: The client has closed its connection.
        """
        settings = self.settings
        deadline = asyncio.get_running_loop().time() + settings.timeout
        with self._counted() as count_more:
            try:
                async with asyncio.timeout_at(deadline):
                    images = await read_images(request, settings)
            except TimeoutError:
                detail = f"the request was not received within {settings.timeout:g} s; send smaller images"
                raise ProblemError(408, detail) from None
            count_more(len(images) - 1)
            found = self.workers.detect(
                images,
                threshold=settings.threshold if threshold is None else threshold,
                top_k=settings.top_k if top_k is None else top_k,
            )
            try:
                async with asyncio.timeout_at(deadline):
                    return Answer.of(await unless_disconnected(request, found))
            except Exception as error:
                raise self._problem(error) from error

    @contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        """Context manager that counts one image as in progress, and yields a function that counts more of its request.

        The function raises ProblemError if there are too many.
        """
        own = 0

        def count_more(count: int) -> None:
            nonlocal own
            if self.in_progress + count > self.settings.queue:
                raise unavailable(
                    f"{self.in_progress} images are in progress and at most {self.settings.queue} are accepted; "
                    "repeat the request later"
                )
            own += count
            self.in_progress += count
            self.metrics.in_progress.set(self.in_progress)

        try:
            count_more(1)
            yield count_more
        finally:
            self.in_progress -= own
            self.metrics.in_progress.set(self.in_progress)

    def _problem(self, error: Exception) -> Exception:
        """Return the error that the client is sent; errors that are bugs are returned unchanged."""
        if isinstance(error, TimeoutError):
            return unavailable(
                f"the answer was not ready within {self.settings.timeout:g} s; repeat the request later"
            )
        if isinstance(error, ImageError):
            return ProblemError(422, str(error))
        if isinstance(error, ConfigError):  # an image of a size that the model does not take
            return ProblemError(422, str(error).replace(str(self.model), "the model"))
        if isinstance(error, PredictionError):
            return ProblemError(500, str(error))
        if is_out_of_memory(error):
            return unavailable(
                "there is not enough memory for this image; send a smaller one, or repeat later"
            )
        return error


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled if the client of a request closes its connection.

    Raises:
        ClientDisconnect: The client has closed its connection.
    """
    task, disconnection = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, disconnection}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnection.cancel()
