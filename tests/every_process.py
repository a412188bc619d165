"""For every process that runs tests: querybox with its shapes checked, and the documentation's code as tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from unittest import mock

if sys.implementation.name == "cpython":
    gc.disable()  # until all tests are collected; see `pytest_collection`

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
    path=str(Path(__file__).parents[1]),
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=enter,
    teardown=leave,
).pytest()
