"""Runs command lines under an audit hook, and prints as JSON what they did that a command must not do.

Usage: ``python audited.py FOLDER COMMANDS``. FOLDER is the only one that may be written to, and COMMANDS is a list of
lists of words as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

FORBIDDEN = (
    *("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.", "http.client."),
)
"""Beginnings of the names of events of programs that are started and of connections."""
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
)
"""Events that change files; those of `open` are judged by their flags."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

CLEAR_REFS = "/proc/self/clear_refs"
"""Through which a process resets its own peak memory."""


class Auditor:
    """Notes what is done outside of a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.realpath(folder)
        self.words: list[str] | None = None
        self.violations: list[str] = []

    def __call__(self, event: str, values: tuple[Any, ...]) -> None:
        """Judge an event."""
        if self.words is None:
            return
        if event.startswith(FORBIDDEN):
            self.note(f"{event} {values!r:.200}")
        elif event in CHANGES or (event == "open" and (values[2] or 0) & WRITES):
            path = values[event in ("os.link", "os.symlink")]  # their second value is the new name
            if isinstance(path, str | bytes | os.PathLike) and not self.allows(os.fsdecode(path)):
                self.note(f"{event} {os.fsdecode(path)}")

    def allows(self, path: str) -> bool:
        """Return whether a path may be written to."""
        real = os.path.realpath(path)
        inside = os.path.commonpath([self.folder, real]) == self.folder
        return inside or real == os.devnull or path == CLEAR_REFS

    def note(self, what: str) -> None:
        """Add a violation."""
        self.violations.append(f"{' '.join(self.words or [])}: {what}")


@contextlib.contextmanager
def benchmarked_here() -> Iterator[None]:
    """Have `querybox benchmark` measure in this process, whose events are seen, and not for long.

    Tuning exports nothing, as `querybox export` is another command of the list.
    """
    from querybox.errors import MissingExtraError

    with (
        mock.patch.multiple(
            "querybox.benchmark",
            MIN_SECONDS=0.0,
            MIN_REPEATS=2,
            PAUSE=0.0,
            ProcessPoolExecutor=lambda workers, mp_context: ThreadPoolExecutor(workers),
        ),
        mock.patch.multiple(
            "querybox.tuning.search",
            SECONDS=0.0,
            export=mock.Mock(side_effect=MissingExtraError("not exported")),
        ),
    ):
        yield


@contextlib.contextmanager
def asked_and_stopped() -> Iterator[None]:
    """Ask the server of `querybox serve` for the detections in an image of more than 1 MB, and then stop it."""
    sys.path.append(str(Path(__file__).parents[1]))
    import torch
    from servers import Client, picture
    from uvicorn import Server

    threads = torch.get_num_threads()
    answers: list[int] = []

    async def startup(server: Server, sockets: list[Any] | None = None) -> None:
        await begin(server, sockets)
        client = Client(sockets[0].getsockname()[1] if sockets else 0)

        def ask() -> None:
            answers.extend([client.predict(picture(800, 800)).status, client.request("/").status])
            server.should_exit = True

        threading.Thread(target=ask).start()

    begin = Server.startup
    with mock.patch.object(Server, "startup", startup):
        yield
    torch.set_num_threads(threads)
    assert answers == [200, 200]


def traced_once() -> contextlib.AbstractContextManager[object]:
    """Have `querybox export` trace the model for its first format alone; the others are written from that trace."""
    sys.path.append(str(Path(__file__).parents[1]))
    from traces import trace_once

    return mock.patch("querybox.exporting.write.trace", trace_once)


PATCHES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "benchmark": benchmarked_here,
    "export": traced_once,
    "serve": asked_and_stopped,
}
"""What a command needs here, by its name."""


def main() -> None:
    """Run the commands."""
    auditor = Auditor(sys.argv[1])
    sys.addaudithook(auditor)
    auditor.words = ["control"]
    with contextlib.suppress(OSError):
        Path(sys.argv[1]).with_name("control").touch()
    control = list(auditor.violations)
    auditor.violations.clear()
    codes = {}
    for words in json.loads(sys.argv[2]):
        auditor.words = words
        from querybox.cli import main as run

        messages = io.StringIO()
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(messages),
            PATCHES.get(words[0], contextlib.nullcontext)(),
        ):
            code = run(words)
        codes[" ".join(words)] = f"{code} {messages.getvalue()[-300:]}" if code else ""
    auditor.words = None
    print(json.dumps({"control": control, "violations": auditor.violations, "failed": codes}))


if __name__ == "__main__":
    main()
