from __future__ import annotations

import threading
import time

import pytest
import torch
from servers import SECONDS

from querybox.inference.predict import Input
from querybox.serving.batches import Batches, Job


def job(side: int = 4, threshold: float = 0.5) -> Job:
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    image = Input(position=0, source="", size=(side, side), pixels=pixels)
    return Job(image=image, threshold=threshold, top_k=10)


def test_a_batch_is_taken_when_it_is_full() -> None:
    batches = Batches(2, SECONDS)
    jobs = [job(), job(8), job(), job(8, 0.1)]
    for each in jobs:
        batches.put(each)
    assert batches.take() == [jobs[0], jobs[2]]
    assert len(batches) == 2


def test_a_batch_is_taken_when_its_first_job_has_waited() -> None:
    batches = Batches(10, 0.05)
    first = job()
    batches.put(first)
    batches.put(second := job())
    assert batches.take() == [first, second]
    assert time.monotonic() - first.arrived >= 0.05


def test_the_batch_that_has_waited_longest_is_next() -> None:
    batches = Batches(2, 0.0)
    lonely, first, second = job(8), job(), job()
    for each in (lonely, first, second):
        batches.put(each)
    assert batches.take() == [lonely]
    assert batches.take() == [first, second]


def test_cancelled_jobs_are_dropped() -> None:
    batches = Batches(1, 0.0)
    batches.put(gone := job())
    batches.put(left := job(8))
    gone.result.cancel()
    assert batches.take() == [left]


def test_a_closed_queue_is_emptied() -> None:
    batches = Batches(10, SECONDS)
    batches.put(left := job())
    batches.close()
    assert batches.take() == [left]
    assert batches.take() is None
    with pytest.raises(RuntimeError, match="closed"):
        batches.put(job())


def test_several_threads_take_every_job_once() -> None:
    batches = Batches(3, 0.001)
    taken: list[Job] = []

    def work() -> None:
        while (batch := batches.take()) is not None:
            assert len({each.key for each in batch}) == 1
            taken.extend(batch)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    jobs = [job(4 + index % 3) for index in range(200)]
    for each in jobs:
        batches.put(each)
    batches.close()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(map(id, taken)) == sorted(map(id, jobs))
