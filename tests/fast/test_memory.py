from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from querybox.fast.memory import retain_freed_memory

STATUS = Path("/proc/self/status")
# In a process of its own: once an allocation fails, as in tests of a lack of memory, malloc moves the thread to another
# arena for good, which asks the system for every large block. Without PyTorch the process starts in 0.1 s.
PROGRAM = """
import resource
from pathlib import Path
from querybox.fast.memory import retain_freed_memory

def page_faults_of(times):
    "Return how often the system had to give the process a page while it made and freed large blocks."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"1" * (64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mebibytes():
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

with retain_freed_memory():
    page_faults_of(30)  # the heap has to grow first, once more if a small thing has taken a large one's place
    again = page_faults_of(10)
    kept = resident_mebibytes()
print(again, kept - resident_mebibytes())
"""


@pytest.mark.skipif(not STATUS.exists(), reason="counts as Linux does")
def test_what_is_freed_is_used_again_and_given_back_in_the_end() -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    again, given_back = map(int, program.stdout.split())
    assert again < 100  # of 163,840 pages
    assert given_back > 50


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    with retain_freed_memory():
        assert torch.ones(3).sum() == 3
