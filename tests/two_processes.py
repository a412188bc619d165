"""Two processes of one run, without the seconds that torchrun takes to start."""

from __future__ import annotations

import socket


def environments() -> list[dict[str, str]]:
    """Return the variables, as torchrun sets them, with which each of two processes on the CPU finds the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(2)
    ]
