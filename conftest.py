"""Which process runs which tests, in which order; what each of them needs is in `every_process`."""

from __future__ import annotations

import os
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

# One thread a process, also in the processes that tests start: two workers share two cores, and sums come out the
# same on every machine. PyTorch reads this when it is imported.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# `pytest -n 2` only hands out tests to its workers: what these import would take it seconds.
hands_out = "PYTEST_XDIST_WORKER" not in os.environ and sys.argv[1:3] == ["-n", "2"]
pytest_plugins = [] if hands_out else ["every_process"]

LONG_FILES = (
    "tests/torture/test_torture.py",
    "tests/exporting/test_relatives.py",
    "tests/parity/test_mmdet2.py",
    "tests/exporting/test_write.py",
    "docs/guides/export.md",
    "tests/cli/test_audit.py",
    "tests/training/test_resume.py",
    "tests/exporting/test_attention_masks.py",
    "tests/bulk/test_ray.py",
    "tests/models/test_recipes.py",
    "tests/models/test_conditional_detr.py",
    "tests/cli/test_export.py",
    "tests/test_gpu_benchmarks.py",
)
"""Files that take more than 10 s, with those of their group, the longest first."""
GROUPS = (
    # Their tests share exported models, which take longer to make than the tests.
    (
        "tests/exporting/test_write.py",
        "tests/exporting/test_load.py",
        "tests/exporting/test_serving.py",
        "tests/exporting/test_signature.py",
        "tests/exporting/test_half.py",
        "tests/exporting/test_tensorrt.py",
    ),
    ("tests/exporting/test_relatives.py", "tests/exporting/test_quantise.py"),
    # Their pages export a detector after the same training.
    ("README.md", "docs/start.md"),
    # Their models in float64 take up to 3 GB, which two workers need not have at the same time.
    (
        "tests/parity/test_mmdet2.py",
        "tests/parity/test_mmdet3.py",
        "tests/parity/test_facebook.py",
        "tests/parity/test_huggingface.py",
    ),
    # Their tests fork processes from a server, which takes seconds to start.
    (
        "tests/torture/test_torture.py",
        "tests/exporting/test_telemetry.py",
        "tests/fast/test_inference.py",
        "tests/fast/test_triton.py",
        "tests/test_arguments.py",
        "tests/test_benchmark.py",
        "tests/test_benchmarks.py",
        "tests/training/test_compile.py",
        "tests/training/test_lock.py",
        "tests/training/test_micro_batches.py",
        "tests/training/test_processes.py",
        "tests/training/test_unreadable.py",
    ),
)
"""Files that one worker gets."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out tests to the workers file by file, or group by group."""
    from xdist.scheduler import LoadFileScheduling

    first = {file: group[0] for group in GROUPS for file in group}

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return first.get(file, file)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: one that is left for the end keeps one worker busy while the other has no work."""
    if absent := [name for name in chain(LONG_FILES, *GROUPS) if not (Path(__file__).parent / name).exists()]:
        raise pytest.UsageError(f"conftest.py names {', '.join(absent)}, which do not exist")
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
