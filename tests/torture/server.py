"""The fork server from which every fault that needs a process of its own gets one, with all modules imported."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from unittest import mock

PRELOADED = (
    "torture.fuzz",
    "torture.hostile",
    "torture.runs",
    "torture.serving",
    "querybox.serving.server",
    "querybox.training.run",
    "accelerate",
    "jinja2",
    "matplotlib.pyplot",
    "psutil",
    "scipy.optimize",
    "torture.frozen",
)
"""Imported once, by the server; in each process that would take seconds."""


@cache
def fork_server() -> ForkServerContext:
    """Return the context whose processes are forked from the server, which is started at the first call.

    A server finds modules by ``PYTHONPATH`` alone before Python 3.13, and ignores those that it does not find.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        ensure_running()
    return context
