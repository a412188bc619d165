from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from servers import SECONDS, Client, GatedEngine, Reply, serving
from tiny_models import TINY

from querybox.detector import Detector
from querybox.inference.optimized import OptimizedDetector
from querybox.structures import Category, Preprocessing


@pytest.fixture(scope="session")
def detector() -> Detector:
    """A small detector with random weights that looks at images of 32 x 48 or 48 x 32."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        "detr_r18", categories=[Category(id=3, name="cat"), Category(id=9, name="<b>dog</b>")], **TINY
    )
    detector.preprocessing = Preprocessing(short_side=32, long_side=48)
    return detector


@pytest.fixture(scope="session")
def engine(detector: Detector) -> OptimizedDetector:
    return detector.optimize()


@pytest.fixture(scope="module")
def client(engine: OptimizedDetector) -> Iterator[Client]:
    """A server with the default settings, for requests that leave no trace."""
    with serving([engine], max_bytes=2**16, max_pixels=10_000) as client:
        yield client


@pytest.fixture
def gated(engine: OptimizedDetector) -> Iterator[GatedEngine]:
    """An engine whose gate the test closes and opens."""
    gated = GatedEngine(engine)
    yield gated
    gated.gate.set()


@pytest.fixture
def at_once() -> Iterator[Callable[[Callable[[], Reply]], Callable[[], Reply]]]:
    """Begin a request in a thread; the result waits for its answer."""
    with ThreadPoolExecutor(64) as pool:

        def begin(ask: Callable[[], Reply]) -> Callable[[], Reply]:
            future = pool.submit(ask)
            return lambda: future.result(SECONDS)

        yield begin
