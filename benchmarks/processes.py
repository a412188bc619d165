"""Sides in separate processes, which live as long as their row and share no memory, cache or setting."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.measure import Row, Side, Work


def in_separate_processes(row: Row) -> Row:
    """Return a row whose sides run in one process each, inside the side's `within` context."""
    return replace(row, sides=[replace(side, build=partial(start, side)) for side in row.sides])


def start(side: Side) -> Work:
    """Build a side in a new process; return a function that runs it there and waits for the result."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, side), daemon=True).start()
    there.close()
    result(here)  # wait until it is built

    def work() -> object:
        here.send("again")
        return result(here)

    return work


def result(connection: Connection) -> object:
    """Return the result received from the process, or raise its exception."""
    answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve(connection: Connection, side: Side) -> None:
    """Run the side on every request, until the other end is closed."""
    with side.within():
        try:
            work = side.build()
            connection.send("built")
            while connection.recv():
                connection.send(work())
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - it is raised again in the measuring process
            connection.send(error)
