"""A side in a process of its own, which lives as long as its row: it shares no memory, cache or setting with others."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.measure import Row, Side, Work


def apart(row: Row) -> Row:
    """Return a row whose sides have a process each, in which the side's `within` holds."""
    return replace(row, sides=[replace(side, build=partial(start, side)) for side in row.sides])


def start(side: Side) -> Work:
    """Build what a side does in a new process, and return what has it done there and waits for the answer."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, side), daemon=True).start()
    there.close()
    result(here)  # it is built

    def work() -> object:
        here.send("again")
        return result(here)

    return work


def result(connection: Connection) -> object:
    """Return what the process answers, or raise what it failed by."""
    answer = connection.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve(connection: Connection, side: Side) -> None:
    """Do the side's work whenever it is asked for, until nobody is there to ask."""
    with side.within():
        try:
            work = side.build()
            connection.send("built")
            while connection.recv():
                connection.send(work())
        except EOFError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told where the side is measured
            connection.send(error)
