from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from querybox.fast.memory import retain_freed_memory

STATUS = Path("/proc/self/status")


def page_faults_of(times: int) -> int:
    """Return how often the system had to give the process a page while it made and freed large tensors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(64 * 2**18)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_mebibytes() -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(not STATUS.exists(), reason="counts as Linux does")
def test_what_is_freed_is_used_again_and_given_back_in_the_end() -> None:
    with retain_freed_memory():
        page_faults_of(
            30
        )  # the heap has to grow first, once more if a small thing has taken a large one's place
        again = page_faults_of(10)
        kept = resident_mebibytes()
    assert again < 100  # of 163,840 pages
    assert kept - resident_mebibytes() > 50


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    with retain_freed_memory():
        assert torch.ones(3).sum() == 3
