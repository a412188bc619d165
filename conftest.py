"""For every test: one thread, querybox imported with its shapes checked, and the documentation's code as tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

if sys.implementation.name == "cpython":
    gc.disable()  # until all tests are collected; see `pytest_collection`

# One thread a process, also in the processes that tests start: two workers share two cores, and sums come out the
# same on every machine. PyTorch reads this when it is imported.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# Under nohup SIGHUP is ignored, and so it would be in all processes that tests start and hang up on.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before the hook below: it looks for compiled files of its own in all that the package imports, and finds none.
import accelerate  # noqa: F401
import beartype  # noqa: F401
import cyclopts  # noqa: F401
import hypothesis
import initial_weights
import pytest
import scipy.optimize  # noqa: F401
import shape_checks
import timm  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

# Compiled modules, and tests with rewritten assertions, are kept beside their sources even where Python is told not to
# write them, as in many container images; every process would compile them anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

shape_checks.install()  # before the modules below, which import querybox
initial_weights.install()

from documentation import enter, leave, run_commands, write_run_file  # noqa: E402

# No test needs its files to survive a loss of power, and waiting for the disk would be much of a tiny training.
mock.patch.object(os, "fsync", return_value=None).start()

# How long an example takes says more of the machine than of the code; the same examples every time.
hypothesis.settings.register_profile("querybox", deadline=None, derandomize=True)
hypothesis.settings.load_profile("querybox")

LONG_FILES = (
    "tests/torture/test_torture.py",
    "tests/exporting/test_relatives.py",
    "tests/parity/test_mmdet2.py",
    "tests/exporting/test_write.py",
    "docs/guides/export.md",
    "tests/cli/test_audit.py",
    "tests/exporting/test_quantise.py",
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
    ),
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
        "tests/test_arguments.py",
        "tests/training/test_compile.py",
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt what lives until the end, modules and tests, from garbage collection, which would visit it every time."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


def pytest_runtest_setup() -> None:
    """Have every test check the shapes of its calls, whatever others checked."""
    shape_checks.CHECKED.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what is not UTF-8 in captured output, which pytest-xdist cannot send to the main process."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="bash", evaluator=run_commands),
        CodeBlockParser(language="yaml", evaluator=write_run_file),
    ],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=enter,
    teardown=leave,
).pytest()
