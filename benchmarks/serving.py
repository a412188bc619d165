"""Throughput and latency of `querybox serve`, and its memory over time.

``python -m benchmarks.serving`` prints the tables of ``docs/guides/serve.md``. Each server is a process of its own; its
clients are threads of this one, with a connection each, which send photos of blood cells one after the other. The
servers take turns, so that a change of the machine's load meets all of them.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from benchmarks.setup import EXAMPLE

CLIENTS = 8
"""Concurrent clients under load."""
ROUNDS = 3
SERVERS: dict[str, tuple[str, ...]] = {
    "1 worker (the default)": (),
    "2 workers": ("--workers", "2"),
    "1 worker, batches of up to 8": ("--max-batch", "8", "--max-wait", "0.01"),
    "2 workers, batches of up to 8": ("--workers", "2", "--max-batch", "8", "--max-wait", "0.01"),
}
"""Options of the servers that are compared."""
BOUNDARY = "boundary"


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    port: int

    def measurement(self, name: str) -> float:
        """Return one of the measurements of the server."""
        connection = HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        (value,) = re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(value)

    @property
    def resident(self) -> float:
        """Memory in use in MB."""
        return self.measurement("process_resident_memory_bytes") / 1e6

    @property
    def processor(self) -> float:
        """Seconds of processor time, of all cores, since its start."""
        return self.measurement("process_cpu_seconds_total")


@dataclass(slots=True)
class Load:
    """What the clients of a server measured."""

    latencies: list[float] = field(default_factory=list)
    """Seconds of every request that was answered."""
    seconds: float = 0.0
    processor: float = 0.0
    """Seconds of processor time of the server."""
    others: int = 0
    """Number of answers other than detections."""

    def row(self, name: str) -> str:
        """Return a row of a table."""
        middle, tail = np.percentile(self.latencies, [50, 99]) * 1000
        rate = len(self.latencies) / self.seconds
        cost = 1000 * self.processor / len(self.latencies)
        return f"| {name} | {rate:.1f} | {middle:.0f} | {tail:.0f} | {cost:.0f} | {self.others} |"


@contextmanager
def running(model: Path, options: Sequence[str]) -> Iterator[Running]:
    """Run a server in a process of its own."""
    command = [sys.executable, "-m", "querybox", "serve", str(model), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            if found := re.search(r"ready at \S+:(\d+)$", line):
                break
        assert found, "the server has not started"
        try:
            yield Running(int(found[1]))
        finally:
            process.terminate()


def ask(server: Running, bodies: Iterator[bytes], end: float, load: Load) -> None:
    """Send requests one after the other, until `end`."""
    connection = HTTPConnection("127.0.0.1", server.port)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    while time.monotonic() < end:
        start = time.perf_counter()
        connection.request("POST", "/predict", next(bodies), headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            load.latencies.append(time.perf_counter() - start)
        else:
            load.others += 1
    connection.close()


def put_under_load(server: Running, bodies: list[bytes], clients: int, seconds: float, load: Load) -> None:
    """Let clients send requests for some seconds."""
    start, before = time.monotonic(), server.processor
    threads = [
        threading.Thread(
            target=ask, args=(server, itertools.cycle(bodies[index:] + bodies[:index]), start + seconds, load)
        )
        for index in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds += time.monotonic() - start
    load.processor += server.processor - before


def form(image: Path) -> bytes:
    """Return the body of a request."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{image.name}"\r\n\r\n'
    return head.encode() + image.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def compare(model: Path, bodies: list[bytes], seconds: float) -> None:
    """Print requests a second and latencies of every server: one client, and several."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(running(model, options)) for name, options in SERVERS.items()}
        alone: dict[str, Load] = {name: Load() for name in servers}
        together: dict[str, Load] = {name: Load() for name in servers}
        for server in servers.values():
            put_under_load(server, bodies, 2, 1.0, Load())  # warms up
        for _ in range(ROUNDS):
            for name, server in servers.items():
                put_under_load(server, bodies, 1, seconds / ROUNDS, alone[name])
                put_under_load(server, bodies, CLIENTS, seconds / ROUNDS, together[name])
    for title, loads in (("one client", alone), (f"{CLIENTS} clients", together)):
        print(f"| {title} | requests/s | p50, ms | p99, ms | CPU ms a request | refused |")
        print("|---|---:|---:|---:|---:|---:|")
        print("\n".join(load.row(name) for name, load in loads.items()), flush=True)


def watch(model: Path, bodies: list[bytes], minutes: float) -> None:
    """Print the memory of a server under load, over time, in ten parts."""
    with running(model, SERVERS["2 workers, batches of up to 8"]) as server:
        put_under_load(server, bodies, CLIENTS, 5.0, Load())
        print(f"| minutes | requests | MB |\n|---:|---:|---:|\n| 0 | 0 | {server.resident:.1f} |")
        load = Load()
        for part in range(1, 11):
            put_under_load(server, bodies, CLIENTS, 6.0 * minutes, load)
            print(f"| {minutes * part / 10:g} | {len(load.latencies)} | {server.resident:.1f} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE / "weights.safetensors")
    parser.add_argument("--seconds", type=float, default=60, help="for each server and number of clients")
    parser.add_argument(
        "--minutes", type=float, default=30, help="for the memory over time; 0 to leave it out"
    )
    options = parser.parse_args()
    bodies = [form(image) for image in sorted((EXAMPLE / "images").glob("*.jpg"))[:32]]
    if options.seconds:
        compare(options.model, bodies, options.seconds)
    if options.minutes:
        watch(options.model, bodies, options.minutes)


if __name__ == "__main__":
    main()
