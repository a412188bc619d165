"""Two processes of one run, without the seconds that torchrun takes to start."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from programs import run_program


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


def run_both(code: str, folder: Path, *arguments: str) -> None:
    """Run a program in two processes, as `run_program` does in one."""
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(run_program, code, folder, *arguments, environment=environment)
            for environment in environments()
        ]
        for run in runs:
            run.result()
