"""From a request to its answer: a place in the queue, a deadline, and one answer for all of its images, or an error."""

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
        taken: Number of images that are received, wait or are computed.
    """

    def __init__(self, model: Path, workers: Workers, settings: ServingSettings, metrics: Metrics) -> None:
        self.model = model
        self.workers = workers
        self.settings = settings
        self.metrics = metrics
        self.taken = 0

    @property
    def ready(self) -> bool:
        """Whether a request would be taken."""
        return self.workers.alive and self.taken < self.settings.queue

    async def predict(self, request: Request, threshold: float | None, top_k: int | None) -> Answer:
        """Answer a request.

        Args:
            request: The request, of which the body is not read yet.
            threshold: Minimum score of detections (0-1); None for that of the settings.
            top_k: Maximum number of detections per image; None for that of the settings.

        Raises:
            ProblemError: It cannot be answered.
            ClientDisconnect: Nobody waits for the answer any more.
        """
        settings = self.settings
        deadline = asyncio.get_running_loop().time() + settings.timeout
        with self._places() as reserve:
            try:
                async with asyncio.timeout_at(deadline):
                    images = await read_images(request, settings)
            except TimeoutError:
                detail = f"the request was not received within {settings.timeout:g} s; send smaller images"
                raise ProblemError(408, detail) from None
            reserve(len(images) - 1)
            found = self.workers.detect(
                images,
                threshold=settings.threshold if threshold is None else threshold,
                top_k=settings.top_k if top_k is None else top_k,
            )
            try:
                async with asyncio.timeout_at(deadline):
                    return Answer.of(await unless_gone(request, found))
            except Exception as error:
                raise self._problem(error) from error

    @contextmanager
    def _places(self) -> Iterator[Callable[[int], None]]:
        """Context manager that takes a place for a request, and yields a function that takes more."""
        mine = 0

        def reserve(count: int) -> None:
            nonlocal mine
            if self.taken + count > self.settings.queue:
                raise unavailable(
                    f"{self.taken} images are in progress and at most {self.settings.queue} are taken; repeat the "
                    "request later"
                )
            mine += count
            self.taken += count
            self.metrics.places.set(self.taken)

        try:
            reserve(1)
            yield reserve
        finally:
            self.taken -= mine
            self.metrics.places.set(self.taken)

    def _problem(self, error: Exception) -> Exception:
        """Return what is told about an error; errors that are bugs are returned as they are."""
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


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of `work`, which is cancelled if the client of a request closes its connection.

    Raises:
        ClientDisconnect: It has.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
