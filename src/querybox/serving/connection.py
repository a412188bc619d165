"""A TCP connection, with limits that uvicorn lacks: for slow clients, and for their number."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
"""Maximum number of connections; others are refused."""
IDLE_SECONDS = 30.0
"""Seconds without a request in progress after which a connection is closed. They limit the time in which a client
sends the header of a request, and receives the answer to the last one."""
MAX_HEADER = 16_384
"""Maximum size of the header of a request in bytes."""
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class Connection(H11Protocol):
    """A connection that is closed if it is idle for too long, even while a header arrives byte by byte."""

    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(REFUSAL)
            transport.close()
        self.restart_timer()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.restart_timer()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not a request, unless another answer has begun; cancel the request in progress."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
        super().connection_lost(exc)

    def restart_timer(self) -> None:
        """Close the connection unless a request arrives in time."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(IDLE_SECONDS, self.close_if_idle)

    def close_if_idle(self) -> None:
        """Close the connection unless a request is in progress, which has its own deadline."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
