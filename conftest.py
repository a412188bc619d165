"""For every test: one thread, querybox imported with its shapes checked, and the documentation's code as tests."""

from __future__ import annotations

import os

# One thread a process, also in the processes that tests start: two workers share two cores, and sums come out the
# same on every machine. PyTorch reads this when it is imported.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# Before the hook below: it looks for compiled files of its own in all that the package imports, and finds none.
import accelerate  # noqa: F401
import beartype  # noqa: F401
import cyclopts  # noqa: F401
import hypothesis
import scipy.optimize  # noqa: F401
import timm  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from documentation import enter, leave, run_commands, write_run_file
from jaxtyping import install_import_hook
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

install_import_hook("querybox", "shape_checks.check")

# How long an example takes says more of the machine than of the code; the same examples every time.
hypothesis.settings.register_profile("querybox", deadline=None, derandomize=True)
hypothesis.settings.load_profile("querybox")

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
