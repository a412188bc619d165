"""Programs in processes of their own, where querybox is as its users have it: its shapes are not checked.

They are forked from a server that has imported it, which would take each of them seconds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from torture.server import fork_server


def new_processes() -> ForkServerContext | SpawnContext:
    """Return the context of processes that share nothing with this one: forked from the server where there is fork."""
    return multiprocessing.get_context("spawn") if sys.platform == "win32" else fork_server()


def run_program(
    code: str, folder: Path, *arguments: str, environment: Mapping[str, str | None] | None = None
) -> str:
    """Run Python code as a program and return what it prints.

    Args:
        code: The source.
        folder: Where it runs.
        arguments: Its command line.
        environment: Variables that are set or, where None, removed.

    Raises:
        AssertionError: It ended with an exception or an exit code; with what it said.
    """
    context = new_processes()
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=execute, args=(code, folder, arguments, environment or {}, sending))
    process.start()
    sending.close()
    try:
        printed, problem = receiving.recv()
    except EOFError:
        printed, problem = "", "it was ended"
    process.join()
    assert not problem, problem
    return str(printed)


def execute(
    code: str,
    folder: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str | None],
    told: Connection,
) -> None:
    """Execute code in this process; tell what it printed, and the exception or exit code with which it ended."""
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["program", *arguments]
    printed, problem = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "program", "exec", dont_inherit=True), {"__name__": "__main__"})
    except SystemExit as ending:
        problem = f"exit code {ending.code}" if ending.code else ""
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        problem = traceback.format_exc()
    told.send((printed.getvalue(), problem))
