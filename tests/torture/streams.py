"""Streams that are cut, silent, slow, garbage, endless, or change their size, of cameras over HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
from squares import SquareEngine, picture
from streams import MJPEG, Connection, Server, endless, mjpeg, moving, serve, transport_stream

from querybox.errors import ImageError
from querybox.inference import reader
from querybox.inference.live import LiveStream
from querybox.inference.predict import predict
from torture.case import Case, require

ATTEMPTS = 3
MAX_GROWTH = 30
"""MiB by which the memory of the process may grow."""


@contextmanager
def stream_of(server: Server, *, timeout: float = 10.0, **limits: float) -> Iterator[LiveStream]:
    """Open the stream of a server, with shorter waits than in use."""
    with (
        mock.patch.multiple(reader, TIMEOUT=timeout, FIRST_WAIT=0.01, MAX_ATTEMPTS=ATTEMPTS),
        LiveStream(server.url, allow_network=True, **limits) as stream,  # type: ignore[arg-type]
    ):
        yield stream


def frames(stream: LiveStream) -> tuple[int, str]:
    """Detect objects in all frames; return their number, and what is reported."""
    reported: list[ImageError] = []
    found = sum(1 for _ in predict(SquareEngine(), stream, on_error=reported.append))
    return found, " ".join(map(str, reported))


def cut(folder: Path, long: bool) -> str:
    """Cut MJPEG and MPEG-TS at many places, the last of them so early that nothing can be decoded."""
    contents = {
        MJPEG: b"".join(map(mjpeg, islice(moving(), 8))),
        "video/mp2t": transport_stream(islice(moving(), 50)),
    }
    cuts = 40 if long else 5

    def script(connection: Connection) -> None:
        connection.answer(kind)
        connection.send(content[: int(max(0.0, 1 - connection.number / cuts) * len(content))])
        connection.wait(0.02)

    opened = processed = 0
    for kind in contents:
        content = contents[kind]
        with serve(script) as server, stream_of(server) as stream:
            count, reported = frames(stream)
            opened, processed = opened + server.connections, processed + count
        require(server.connections > 0.7 * cuts, f"{kind}: opened {server.connections} times")
        require(count > 0.3 * cuts and "was given up" in reported, f"{kind}: {count} frames, {reported}")
    return (
        f"MJPEG and MPEG-TS cut at {cuts} places: opened {opened} times, {processed} frames; "
        "at last given up and reported"
    )


def lose(folder: Path, long: bool) -> str:
    """Answer no more after some frames: close at once, say nothing, or send a byte now and then."""

    def script(connection: Connection) -> None:
        if connection.number == 0:
            connection.answer()
            connection.show(islice(moving(), 5), wait=0.05)
        elif behaviour == "silence":
            connection.wait(60)
        elif behaviour == "drip":
            for _ in range(600):
                connection.send(b"H")
                connection.wait(0.1)

    for behaviour in ("close", "silence", "drip"):
        begin = time.monotonic()
        with serve(script) as server, stream_of(server, timeout=0.5) as stream:
            count, reported = frames(stream)
            require(server.connections == 1 + ATTEMPTS, f"{server.connections} connections")
        require(count > 0 and "was given up" in reported, f"{behaviour}: {count} frames, {reported}")
        require(time.monotonic() - begin < 20, f"{behaviour}: {time.monotonic() - begin:.0f} s")
    return f"closed, silent or dripping: opened {ATTEMPTS} times more, then given up and reported"


def garbage(folder: Path, long: bool) -> str:
    """Send noise without an end, as such, and between the frames of a stream."""
    random = np.random.default_rng(0)

    def noise(connection: Connection) -> None:
        connection.answer("video/mp2t")
        while True:
            connection.send(random.bytes(100_000))

    def mixed(connection: Connection) -> None:
        connection.answer()
        for pixels in moving():
            part = bytearray(mjpeg(pixels))
            if random.random() < 0.5:
                part[len(part) // 2 : len(part) // 2 + 200] = random.bytes(200)
            connection.send(bytes(part))
            connection.wait(0.005)

    with serve(noise) as server, stream_of(server) as stream:
        count, reported = frames(stream)
    require(count == 0 and "cannot be opened" in reported, f"noise: {count} frames, {reported}")
    wanted = 200 if long else 20
    with serve(mixed) as server, stream_of(server, max_frames=wanted, duration=60) as stream:
        count, reported = frames(stream)
        summary = stream.summary()
    require(count == wanted and not reported, f"mixed: {count} frames, {reported}")
    return f"noise refused; with noise in every other frame {summary}"


def endless_and_slow(folder: Path, long: bool) -> str:
    """Process a stream at a tenth of its rate: the delay and the memory must not grow."""
    seconds = 30 if long else 1.5
    process = psutil.Process()
    ages: list[float] = []
    memory: list[int] = []
    with serve(endless) as server, stream_of(server, duration=seconds) as stream:
        for found in predict(SquareEngine(), stream):
            ages.append(time.time() - (found.time or 0))
            memory.append(process.memory_info().rss)
            time.sleep(0.1)
        summary = stream.summary()
    growth = (max(memory) - memory[2]) / 2**20
    require(len(ages) > 3 and sorted(ages)[len(ages) // 2] < 0.1, f"ages {ages}")
    require(growth < MAX_GROWTH, f"memory grew by {growth:.0f} MiB")
    return (
        f"{summary}; processed {1000 * float(np.median(ages)):.0f} ms after they came, "
        f"memory grew by {growth:.1f} MiB"
    )


def sizes(pictures: int) -> Iterable[tuple[int, int]]:
    """Return many sizes, from 16 to 160 pixels."""
    random = np.random.default_rng(0)
    return [(int(height), int(width)) for height, width in random.integers(16, (48, 160), (pictures, 2))]


def change_size(folder: Path, long: bool) -> str:
    """Send frames of another size each."""
    wanted = 100 if long else 10
    pictures = [picture(10, None)[:height, :width] for height, width in sizes(20)]

    def script(connection: Connection) -> None:
        connection.answer()
        connection.show(cycle(pictures), wait=0.02)

    with serve(script) as server, stream_of(server, max_frames=wanted, duration=60) as stream:
        seen = [found.size for found in predict(SquareEngine(), stream)]
    require(len(seen) == wanted and len(set(seen)) > 3, f"{len(seen)} frames of {len(set(seen))} sizes")
    return f"{len(seen)} frames of {len(set(seen))} sizes"


CASES = [
    Case(name="streams that are cut", required="opened again, from 1 s on with longer waits", run=cut),
    Case(name="streams that do not come back", required="given up and reported, in bounded time", run=lose),
    Case(name="garbage, alone and between frames", required="refused; what can be decoded is", run=garbage),
    Case(
        name="an endless stream at a tenth of its rate",
        required="the newest frame; memory and delay do not grow",
        run=endless_and_slow,
    ),
    Case(name="frames of changing size", required="each in its own pixels", run=change_size),
]
