"""The training data pipeline of a machine with a GPU: images a second from files to batches in page-locked memory."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator

from benchmarks.data import ANNOTATIONS
from benchmarks.gpu.inference import OURS
from benchmarks.gpu.models import Run
from benchmarks.gpu.training import BATCH
from benchmarks.measure import Row, Side
from querybox.data import DataSettings, read_dataset, train_loader

WORKERS = 16


def rows(run: Run) -> Iterator[Row]:
    """Yield the row."""
    workers = 1 if run.quick else min(WORKERS, os.cpu_count() or 1)
    yield Row(
        name="pipeline",
        title=f"Training pipeline, images of 640x480 at the sizes of the paper, {workers} workers",
        sides=[Side(name=OURS, build=lambda: one_epoch(run, workers))],
        difference=None,
        unit="images/s",
        value=float,
        rounds=(1, 3),
        seconds=run.seconds(8.0),
    )


def one_epoch(run: Run, workers: int) -> Callable[[], float]:
    """Return what loads all images once, after the workers have started, and answers with images a second."""
    data = read_dataset(ANNOTATIONS)
    if run.quick:
        data = type(data)(source=data.source, categories=data.categories, images=data.images[:4])
    loader = train_loader(data, DataSettings(workers=workers), batch_size=run.batch(BATCH), seed=0)
    epochs = itertools.count()

    def load() -> float:
        loader.batch_sampler.set_epoch(next(epochs))
        start = time.perf_counter()
        images = sum(len(batch.image_ids) for batch in loader)
        return images / (time.perf_counter() - start)

    load()
    return load
