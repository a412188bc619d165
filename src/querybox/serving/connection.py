"""One TCP connection: limits that uvicorn does not have, for clients that are slow or many."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
"""Maximum number of connections; others are refused."""
QUIET_SECONDS = 30.0
"""Seconds without a request in progress after which a connection is cut: for its header, and to take the answer."""
MAX_HEADER = 16_384
"""Maximum size of the header of a request in bytes."""
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Connection(H11Protocol):
    """A connection that is cut if it has been quiet for too long, also while its header arrives byte by byte."""

    quiet: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse the connection."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(FULL)
            transport.close()
        self.wait()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.wait()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no request, unless they follow an answer that has begun, and give up the request."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self.quiet is not None:
            self.quiet.cancel()
        super().connection_lost(exc)

    def wait(self) -> None:
        """Cut the connection unless a request arrives in time."""
        if self.quiet is not None:
            self.quiet.cancel()
        self.quiet = self.loop.call_later(QUIET_SECONDS, self.cut)

    def cut(self) -> None:
        """Cut the connection unless a request is in progress, which has a deadline of its own."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
