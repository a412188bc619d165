"""A server that is killed, overloaded, fed with rubbish, or asked by clients that are slow, many or greedy."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from random import Random

import torch
from servers import BOUNDARY, Client, Reply, form, picture

from querybox.cli import main
from querybox.text import counted
from torture.case import Case, require
from torture.data_sets import tiny_detector
from torture.hostile import images_that_lie, text_bomb
from torture.mutations import spoil
from torture.server import fork_server

SECONDS = 120.0
"""A server that has not begun or ended by then hangs, or the machine is very busy."""
KIND = f"multipart/form-data; boundary={BOUNDARY}"
QUERY = "?threshold=0"
PICTURES = [picture(40, 60, seed) for seed in range(4)]
GROWTH = 64.0
"""Most MB that a server may have grown by: threads, and what the allocators of C keep."""


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    process: ForkServerProcess
    client: Client
    log: Path
    answers: list[bytes]
    """Those to the first `PICTURES`, when nothing else was asked."""

    def memory(self, field: str = "VmRSS") -> float:
        """Return the memory in use, or its peak (VmHWM), in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        (kilobytes,) = re.findall(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
        return int(kilobytes) / 1000

    def ask(self, number: int) -> Reply:
        """Ask for the detections in a picture."""
        return self.client.predict(PICTURES[number % len(PICTURES)], query=QUERY)

    def is_right(self, number: int, reply: Reply) -> bool:
        """Whether the answer to `ask` is the one that it was at first."""
        return reply.status == 200 and reply.body == self.answers[number % len(PICTURES)]

    def require_sound(self) -> None:
        """Raise NotSurvivedError unless the server answers as at its begin, holds nothing, and has logged no bug."""
        end = time.monotonic() + SECONDS
        while self.client.metric("querybox_images_in_progress") and time.monotonic() < end:
            time.sleep(0.02)
        reply = self.ask(0)
        require(self.is_right(0, reply), f"afterwards it answers {reply.status}: {reply.body[:200]!r}")
        logged = self.log.read_text(encoding="utf-8").splitlines()
        require(all(line.startswith("the server ") for line in logged), f"it logged {logged}")
        require(self.client.metric("querybox_images_in_progress") == 0, "images are in progress for ever")


def run(model: Path, port: int, options: tuple[str, ...], log: Path) -> None:
    """Run the command, in a process that has only this to do."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    os._exit(main(["serve", str(model), "--port", str(port), *options]))


@contextmanager
def running(folder: Path, *options: str, port: int | None = None) -> Iterator[Running]:
    """Run a server of a tiny model."""
    model, log = folder / "model.safetensors", folder / "log.txt"
    if not model.exists():
        tiny_detector().save(model)
    client = Client(port or free_port())
    process = fork_server().Process(target=run, args=(model, client.port, options, log))
    process.start()
    try:
        wait_for(process, client, log)
        answers = [client.predict(content, query=QUERY).body for content in PICTURES]
        yield Running(process, client, log, answers)
    finally:
        process.kill()
        process.join()


def wait_for(process: ForkServerProcess, client: Client, log: Path) -> None:
    """Wait until a server listens."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.is_alive():
        with suppress(OSError):
            client.request("/ready")
            return
        time.sleep(0.02)
    require(False, f"the server has not begun: {log.read_text(encoding='utf-8')}")


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def crowd(server: Running, clients: int) -> Iterator[Counter[str]]:
    """Let clients ask without end, each for one picture after the other; yields what came of it.

    Raises:
        NotSurvivedError: An answer was neither right nor 503 with Retry-After.
    """
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def ask_on(first: int) -> None:
        number = first
        while not stop.is_set():
            try:
                reply = server.ask(number)
            except (OSError, HTTPException):  # the connection was refused, or cut in an answer
                seen["no answer"] += 1
                time.sleep(0.01)
                continue
            refused = reply.status == 503 and "retry-after" in reply.headers
            right = server.is_right(number, reply)
            seen["right" if right else "503" if refused else f"{reply.status}: {reply.body[:99]!r}"] += 1
            number += 1

    threads = [threading.Thread(target=ask_on, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
    others = set(seen) - {"right", "503", "no answer"}
    require(not others, f"wrong answers: {others}")


def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + SECONDS
    while not happened():
        require(time.monotonic() < end, "nothing happens any more")
        time.sleep(0.01)


def kill(folder: Path, long: bool) -> str:
    """SIGKILL under load, and a new server at the same port."""
    times, port = (10 if long else 1), free_port()
    total: Counter[str] = Counter()
    first: list[bytes] = []
    for _ in range(times):
        with running(folder, port=port) as server, crowd(server, 8) as seen:
            first = first or server.answers
            require(server.answers == first, "the new server answers otherwise")
            until(lambda seen=seen: seen["right"] >= 8)  # type: ignore[misc]
            server.process.kill()
            until(lambda seen=seen: seen["no answer"] >= 8)  # type: ignore[misc]
        total += seen
    return (
        f"{times} times: {total['right']} right answers, none in part; a new server began at once at the port"
    )


def stop(folder: Path, long: bool) -> str:
    """SIGTERM under load."""
    times, answered = (10 if long else 1), 0
    for turn in range(times):
        with running(folder, "--queue", "64") as server, ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(server.ask, number) for number in range(16)]
            until(lambda server=server: server.client.metric("querybox_images_in_progress") > 0)  # type: ignore[misc]
            os.kill(server.process.pid or 0, signal.SIGTERM)
            server.process.join(SECONDS)
            require(server.process.exitcode == 0, f"{turn}: it ended with {server.process.exitcode}")
            for number, future in enumerate(asked):
                with suppress(ConnectionError):  # one that came after the signal
                    require(server.is_right(number, future.result(SECONDS)), "a wrong answer")
                    answered += 1
    require(answered > 0, "nothing was answered")
    return f"{counted(times, 'time')}: exit code 0, {answered} of {16 * times} taken and answered, the others refused"


def overload(folder: Path, long: bool) -> str:
    """Several times more requests than the queue takes, for a while."""
    clients, enough = (64, 5_000) if long else (32, 100)
    with running(folder, "--queue", "4") as server:
        before = server.memory()
        with crowd(server, clients) as seen:
            until(lambda: seen["right"] >= 20 and seen["503"] >= enough)
            require(server.client.request("/health").status == 200, "unhealthy")
        server.require_sound()
        grown = server.memory() - before
    require(grown < GROWTH, f"memory grew by {grown:.0f} MB")
    require(not seen["no answer"], f"{seen['no answer']} requests without an answer")
    return f"{clients} clients: {seen['right']} right answers, {seen['503']} times 503; memory grew by {grown:.0f} MB"


def slow(folder: Path, long: bool) -> str:
    """Clients that send a header or a body byte by byte, or do not read the answer."""
    count = 150 if long else 12
    body = form([PICTURES[0]])
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + KIND.encode()
    head += b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(folder, "--queue", str(count + 4), "--timeout", "2") as server, ExitStack() as stack:
        connections = [stack.enter_context(server.client.connect()) for _ in range(count)]
        for number, connection in enumerate(connections):
            connection.sendall((head[:50], head + body[:100], head + body)[number % 3])
        slow_bodies = connections[1::3]
        for number in range(20):
            until(lambda number=number: server.is_right(number, server.ask(number)))  # type: ignore[misc]
        for connection in slow_bodies:
            require(connection.recv(100).startswith(b"HTTP/1.1 408 "), "a slow body was not given up")
        server.require_sound()
    return f"{count} slow clients: 20 of 20 others answered, {len(slow_bodies)} slow bodies given up with 408"


def huge(folder: Path, long: bool) -> str:
    """Bodies without an end, with and without a stated length."""
    size, count = ((512 << 20), 4) if long else ((64 << 20), 2)

    def endless() -> Iterator[bytes]:
        yield form([b"x"])[:100]
        for _ in range(size >> 16):
            yield bytes(1 << 16)

    with running(folder, "--max-bytes", "1000000") as server:
        before = server.memory()
        with ThreadPoolExecutor(count) as pool:
            lengths = [{}, {"Content-Length": str(size + 100)}] * (count // 2)
            asked = [
                pool.submit(server.client.request, "/predict", endless(), {"Content-Type": KIND, **length})
                for length in lengths
            ]
            ends: Counter[str] = Counter()
            for future in asked:
                try:
                    ends[str(future.result().status)] += 1
                except OSError:  # the client had not looked for an answer when the connection was cut
                    ends["cut"] += 1
        server.require_sound()
        grown = server.memory("VmHWM") - before
    require(set(ends) <= {"413", "cut"} and ends["413"] > 0, f"ended with {dict(ends)}")
    require(grown < GROWTH, f"memory grew by {grown:.0f} MB")
    said = ", ".join(f"{number} times {end}" for end, number in ends.items())
    return f"{count} bodies of {size >> 20} MiB: {said}; memory grew by {grown:.0f} MB"


def bombs(folder: Path, long: bool) -> str:
    """Small images that say they are large."""
    repeats = 20 if long else 1
    with running(folder) as server:
        before = server.memory()
        files = [*images_that_lie().items(), ("text.png", text_bomb())]
        for name, content in files * repeats:
            reply = server.client.predict(PICTURES[0], content)
            require(reply.status == 422, f"{name}: {reply.status} {reply.body[:200]!r}")
        server.require_sound()
        grown = server.memory("VmHWM") - before
    require(grown < GROWTH, f"memory grew by {grown:.0f} MB")
    return f"{len(files) * repeats} refused; memory grew by {grown:.0f} MB at most"


def broken(folder: Path, long: bool) -> str:
    """Mutants of images of every format, and of forms around them."""
    count, seen = (2000 if long else 60), Counter[int]()
    files = [picture(40, 60, kind=kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")]
    with running(folder) as server, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> Reply:
            random = Random(number)
            file = random.choice(files)
            if number % 3:
                return server.client.predict(spoil(file, "image", random))
            return server.client.request(
                "/predict", spoil(form([file]), "bytes", random), {"Content-Type": KIND}
            )

        for number, reply in enumerate(pool.map(ask, range(count))):
            seen[reply.status] += 1
            require(reply.status in (200, 400, 422), f"{number}: {reply.status} {reply.body[:200]!r}")
            leaked = [word for word in (b"object at", b".py", os.fsencode(folder)) if word in reply.body]
            require(not leaked, f"{number}: an answer tells about this machine: {reply.body!r}")
        server.require_sound()
    return f"{count} mutants: {', '.join(f'{seen[status]} times {status}' for status in sorted(seen))}"


def rubbish(folder: Path, long: bool) -> str:
    """Bytes that are no requests, and requests that are cut off."""
    count = 1000 if long else 60
    sound = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    sound += b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
    with running(folder) as server:
        for number in range(count):
            random = Random(number)
            content = random.randbytes(200) if number % 3 == 0 else spoil(sound, "bytes", random)
            with server.client.connect() as connection, suppress(ConnectionError):
                connection.sendall(content)
                if number % 2:  # otherwise it goes away at once
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass
        server.require_sound()
    return f"{count} times survived"


def many(folder: Path, long: bool) -> str:
    """More connections than are accepted, which send nothing."""
    count = 2000 if long else 600
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 200)), hard))
    with running(folder) as server:
        before = server.memory()
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(server.client.connect())
            refused = server.client.request("/health")
            require(refused.status == 503 and "retry-after" in refused.headers, f"got {refused.status}")
        until(lambda: server.client.request("/health").status == 200)
        server.require_sound()
        grown = server.memory() - before
    require(grown < GROWTH, f"memory grew by {grown:.0f} MB")
    return f"{count} connections: 503, and 200 once they were closed; memory grew by {grown:.0f} MB"


CASES = [
    Case(
        name="SIGKILL under load",
        required="no answer in part; a new server at the same port answers the same",
        run=kill,
    ),
    Case(name="SIGTERM under load", required="what was taken is answered, exit code 0", run=stop),
    Case(name="more requests than the queue takes", required="right or 503, memory bounded", run=overload),
    Case(name="slow clients", required="others are answered; given up after the timeout", run=slow),
    Case(name="uploads without an end", required="413, memory bounded", run=huge),
    Case(name="decompression bombs", required="422, memory bounded", run=bombs),
    Case(name="broken images and forms", required="200, 400 or 422, no bug", run=broken),
    Case(name="rubbish in place of requests", required="survived, no bug", run=rubbish),
    Case(name="many connections", required="503 beyond the limit; recovers", run=many),
]
