"""Servers of `querybox.serving` in a thread, and a client made of the standard library's."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from querybox.inference.engine import Engine
from querybox.serving.access import Access
from querybox.serving.address import bind
from querybox.serving.server import Server
from querybox.serving.settings import ServingSettings
from querybox.structures import Category, DetectorOutput, ImageBatch, Preprocessing

SECONDS = 60.0
BOUNDARY = "boundary"


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Asks a server; every request has a connection of its own."""

    port: int
    stop: Callable[[], None] = lambda: None
    """Let the server stop, as SIGTERM does."""

    def request(
        self,
        path: str,
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> Reply:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, received, answer.read())
        finally:
            connection.close()

    def predict(self, *files: bytes, query: str = "", **headers: str) -> Reply:
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.request(f"/predict{query}", form(files), {**kind, **headers})

    def connect(self) -> socket.socket:
        """Open a connection for requests that are no requests."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)

    def metric(self, name: str) -> float:
        """Return a measurement by its name and labels."""
        lines = self.request("/metrics").body.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a measurement has a value."""
        end = time.monotonic() + SECONDS
        while (found := self.metric(name)) != value:
            assert time.monotonic() < end, f"{name} is {found} instead of {value}"
            time.sleep(0.005)


def form(files: Sequence[bytes], field_name: str = "image") -> bytes:
    """Return the body of a multipart form."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field_name}"; filename="/etc/passwd"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def picture(
    height: int = 40, width: int = 60, seed: int = 0, kind: str = "PNG", compression: str | None = None
) -> bytes:
    """Return an image file with noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, compression=compression)
    return file.getvalue()


@contextmanager
def serving(
    engines: Sequence[Engine], access: Access | None = None, *, model: Path = Path("model"), **settings: Any
) -> Iterator[Client]:
    """Run a server in a thread; at the end it is stopped and has to end."""
    access = access or Access(token=None, host="127.0.0.1", loopback=True)
    bound, _ = bind("127.0.0.1", 0, anonymous=False)
    port = bound.getsockname()[1]
    server = Server(model, engines, ServingSettings(workers=len(engines), **settings), access)
    thread = threading.Thread(target=server.serve_at, args=(bound,))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.002)
    assert server.started

    def stop() -> None:
        server.should_exit = True

    try:
        yield Client(port, stop)
    finally:
        stop()
        thread.join(SECONDS)
    assert not thread.is_alive()


class GatedEngine:
    """An engine that waits while its gate is closed, and notes the sizes of its batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.gate = threading.Event()
        self.gate.set()
        self.sizes: list[int] = []
        self.error: Callable[[ImageBatch], Exception | None] = lambda _: None
        """What is raised for a batch."""

    def __call__(self, batch: ImageBatch, /) -> DetectorOutput:
        self.sizes.append(len(batch.images))
        assert self.gate.wait(SECONDS)
        if error := self.error(batch):
            raise error
        return self.engine(batch)

    @property
    def categories(self) -> tuple[Category, ...]:
        return self.engine.categories

    @property
    def preprocessing(self) -> Preprocessing:
        return self.engine.preprocessing

    @property
    def device(self) -> torch.device:
        return self.engine.device
