"""The threads that decode images and run the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from querybox.data.encoded import EncodedImage
from querybox.data.image import read_image
from querybox.errors import ConfigError
from querybox.inference.detections import Detections
from querybox.inference.engine import Engine
from querybox.inference.optimized_model import OptimizedModel, as_optimized
from querybox.inference.predict import Input, detect, effective_batch_size, prepare
from querybox.inference.sources import Frame
from querybox.pixels import as_pixels
from querybox.serving.batches import Batches, Job
from querybox.serving.metrics import Metrics
from querybox.serving.settings import ServingSettings

T = TypeVar("T")

DEFAULT_BATCH = 8
"""Default maximum number of images in a forward pass on an accelerator; see `effective_batch_size`."""
MAX_WAIT = 0.005
"""Default maximum time in seconds that an image waits for others."""


def open_engines(load: Callable[[], Engine], workers: int) -> list[Engine]:
    """Return the model of each thread; they divide the threads of PyTorch among them.

    Args:
        load: Loads the model. It is called for each thread if the model cannot be shared by threads.
        workers: Number of threads that run the model.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    engine = as_optimized(load())
    if isinstance(engine, OptimizedModel):
        return [engine] * workers
    return [engine, *(load() for _ in range(workers - 1))]


class Workers:
    """The model in as many threads as there are engines, and as many threads that decode images.

    Attributes:
        batches: The images that wait for the model.
    """

    def __init__(self, engines: Sequence[Engine], settings: ServingSettings, metrics: Metrics) -> None:
        """Prepare the threads.

        Args:
            engines: The model of each thread; the same one several times if threads can share it.
            settings: The limits.
            metrics: Where batches are counted.

        Raises:
            ConfigError: The settings have a `max_wait`, and no image can share a forward pass.
        """
        self.engines = engines
        self.settings = settings
        self.metrics = metrics
        max_batch = settings.max_batch or effective_batch_size(engines[0], DEFAULT_BATCH)
        if max_batch == 1 and settings.max_wait is not None:
            raise ConfigError(
                "serve: max_wait has no effect if images are predicted one at a time, as they are on a CPU by default: "
                "set max_batch as well, or omit max_wait"
            )
        self.batches = Batches(max_batch, MAX_WAIT if settings.max_wait is None else settings.max_wait)
        self._decoders = ThreadPoolExecutor(len(engines), thread_name_prefix="querybox-decode")
        self._threads = [
            threading.Thread(target=self._run, args=(engine,), name=f"querybox-model-{index}", daemon=True)
            for index, engine in enumerate(engines)
        ]

    def start(self) -> None:
        """Run each engine once, so that the first request is as fast as the others, and start the threads.

        Raises:
            QueryboxError: The model cannot be run.
        """
        preprocessing = self.engines[0].preprocessing
        blank = torch.zeros(3, preprocessing.short_side, preprocessing.short_side, dtype=torch.uint8)
        for engine in dict.fromkeys(self.engines):
            detect(engine, list(prepare([Frame(source="a blank image", pixels=blank)], preprocessing)), 1)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Compute the queued images, and end the threads."""
        self.batches.close()
        for thread in self._threads:
            thread.join()
        self._decoders.shutdown()

    @property
    def alive(self) -> bool:
        """Whether all threads that run the model are alive."""
        return all(thread.is_alive() for thread in self._threads)

    async def detect(
        self, images: Sequence[EncodedImage], *, threshold: float, top_k: int
    ) -> list[Detections]:
        """Decode images, and detect the objects in them.

        Raises:
            ImageError: One of them cannot be read; the first of those is named.
            QueryboxError: The model cannot be run on one of them.
        """
        loop = asyncio.get_running_loop()
        decoded = await all_of(loop.run_in_executor(self._decoders, self._decode, each) for each in images)
        jobs = [Job(image=each, threshold=threshold, top_k=top_k) for each in decoded]
        for job in jobs:
            self.batches.put(job)
        return await all_of(asyncio.wrap_future(job.result) for job in jobs)

    def _decode(self, image: EncodedImage) -> Input:
        preprocessing = self.engines[0].preprocessing
        pixels = as_pixels(
            read_image(image, pixel_range=preprocessing.pixel_range, max_pixels=self.settings.max_pixels)
        )
        (prepared,) = prepare([Frame(source=image.name, pixels=pixels)], preprocessing)
        return prepared

    def _run(self, engine: Engine) -> None:
        while (batch := self.batches.take()) is not None:
            running = [job for job in batch if job.result.set_running_or_notify_cancel()]
            if running:
                self.metrics.batch_sizes.observe(len(running))
                answer(engine, running)


async def all_of(futures: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all futures; raise the first error in their order. If it is cancelled, so are they."""
    results = await asyncio.gather(*futures, return_exceptions=True)
    found = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    return found


def answer(engine: Engine, jobs: Sequence[Job]) -> None:
    """Run the model on a batch, and give every job its result or its error."""
    first = jobs[0]
    try:
        results = detect(engine, [job.image for job in jobs], first.top_k, first.threshold)
    except Exception as error:  # noqa: BLE001 - passed on to each job
        if len(jobs) == 1:
            first.result.set_exception(error)
            return
        for job in jobs:  # so that one image does not fail the others
            answer(engine, [job])
        return
    for job, found in zip(jobs, results, strict=True):
        job.result.set_result(found)
