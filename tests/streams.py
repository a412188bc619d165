"""Servers on this machine that stream over HTTP and RTSP, and do what cameras and networks do to streams."""

from __future__ import annotations

import io
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from squares import HEIGHT, WIDTH, Picture, picture

BOUNDARY = "frame"
MJPEG = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
Script = Callable[["Connection"], None]
"""What the server does with a connection, which is closed when it returns."""


class Connection:
    """A request that a server got, and its answer."""

    def __init__(self, handler: BaseHTTPRequestHandler, number: int, server: Server) -> None:
        self.number = number
        """Number of connections before this one."""
        self.path = handler.path
        self.authorization = handler.headers.get("Authorization", "")
        self._handler, self._server = handler, server

    def answer(self, kind: str = MJPEG, status: int = 200, **headers: str) -> None:
        """Send the head of the answer."""
        self._handler.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()

    def send(self, content: bytes) -> None:
        """Send some bytes."""
        self._handler.wfile.write(content)
        self._handler.wfile.flush()

    def show(self, pictures: Iterable[Picture], wait: float = 0.01) -> None:
        """Send pictures as MJPEG, with so many seconds after each."""
        for pixels in pictures:
            self.send(mjpeg(pixels))
            self.wait(wait)

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than the server is there."""
        self._server.closed.wait(seconds)


class Server:
    """A server that does what its script says with every connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.closed = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number, outer.connections = outer.connections, outer.connections + 1
                with suppress(OSError):  # the client has gone
                    outer.script(Connection(self, number, outer))

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_port
        self.url = f"http://127.0.0.1:{self.port}/video"


@contextmanager
def serve(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server, over TLS if a context is given."""
    server = Server(script)
    if tls is not None:
        server.http.socket = tls.wrap_socket(server.http.socket, server_side=True)
        server.url = server.url.replace("http:", "https:")
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def mjpeg(pixels: Picture) -> bytes:
    """Return a picture as a part of an MJPEG stream."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95, subsampling=0)
    content = file.getvalue()
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def moving(start: int = 0) -> Iterator[Picture]:
    """Yield a red square that moves back and forth, without an end."""
    while True:
        for left in (*range(10, 100, 3), *range(100, 10, -3)):
            yield picture(left, None)
            start += 1


def endless(connection: Connection) -> None:
    """Show a moving square without an end."""
    connection.answer()
    connection.show(moving())


def transport_stream(pictures: Iterable[Picture], codec: str = "mpeg2video") -> bytes:
    """Return pictures as MPEG-TS with 25 frames a second."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class RtspCamera:
    """A camera that sends one MPEG-TS to every client, over RTSP with RTP in the same connection (RFC 2326, 2250)."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self.listener.getsockname()[1]}/cam"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Serve one client after the other."""
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                with suppress(OSError), client, client.makefile("rwb") as file:
                    self.serve(file)

    def serve(self, file: Any) -> None:
        """Answer the requests of a client, and play after that to play."""
        while line := file.readline().decode().strip():
            headers = {}
            while header := file.readline().decode().strip():
                name, _, value = header.partition(": ")
                headers[name] = value
            method = line.split()[0]
            self.requests.append(method)
            body = extra = ""
            if method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
                extra = "Content-Type: application/sdp\r\n"
            elif method == "SETUP":
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
            elif method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            answer = f"RTSP/1.0 200 OK\r\nCSeq: {headers.get('CSeq', 0)}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            file.write((answer + body).encode())
            file.flush()
            if method == "PLAY":
                self.play(file)
                return

    def play(self, file: Any) -> None:
        """Send the stream in packets of 7 x 188 bytes."""
        for number, start in enumerate(range(0, len(self.content), 1316)):
            payload = self.content[start : start + 1316]
            packet = struct.pack(">BBHII", 0x80, 33, number, number * 900, 1) + payload
            file.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            file.flush()
            time.sleep(0.001)

    def close(self) -> None:
        """Take no more clients."""
        self.listener.close()
