"""The server: uvicorn with the application and the workers, from start to stop."""

from __future__ import annotations

import ctypes
import logging
import math
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import uvicorn
from PIL import _imaging
from starlette.types import ASGIApp

from querybox.inference.engine import Engine
from querybox.interrupt import handling
from querybox.serving.access import Access
from querybox.serving.address import url_of
from querybox.serving.app import create_app
from querybox.serving.connection import MAX_HEADER, Connection
from querybox.serving.metrics import Metrics
from querybox.serving.service import Service
from querybox.serving.settings import ServingSettings
from querybox.serving.workers import Workers

logger = logging.getLogger(__name__)

KEEP_ALIVE = 5
"""Seconds after which a connection without a request is closed."""
NOISY_LOGGERS = ("PIL", "python_multipart")
"""Loggers of libraries that report what is wrong with images and forms."""


class Server(uvicorn.Server):
    """A server that runs until SIGTERM or Ctrl-C, or until `should_exit` is set, and then completes accepted requests.

    A second Ctrl-C ends it at once.
    """

    def __init__(
        self, model: Path, engines: Sequence[Engine], settings: ServingSettings, access: Access
    ) -> None:
        """Prepare a server.

        Args:
            model: The file or folder of the model.
            engines: The model of each worker; see `querybox.serving.workers.open_engines`.
            settings: The limits.
            access: Who may ask.

        Raises:
            ConfigError: A setting has no effect; see `Workers`.
        """
        metrics = Metrics()
        self.workers = Workers(engines, settings, metrics)
        app = create_app(Service(model, self.workers, settings, metrics), metrics, access)
        super().__init__(configuration(app, settings))

    def serve_at(self, bound: socket.socket) -> None:
        """Serve at a socket with an address, which is closed at the end.

        Raises:
            QueryboxError: The model cannot be run.
        """
        with bound:
            self.workers.start()
            try:
                with ignored_signals(), silenced_libraries():
                    self.run(sockets=[bound])
            finally:
                self.workers.stop()
        logger.info("the server has stopped")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        logger.info("the server is ready at %s", " ".join(map(url_of, sockets or [])))


def configuration(app: ASGIApp, settings: ServingSettings) -> uvicorn.Config:
    """Return the configuration of uvicorn for the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",  # the application logs its errors itself
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(settings.timeout) + 1,
        h11_max_incomplete_event_size=MAX_HEADER,
    )


def ignored_signals() -> AbstractContextManager[None]:
    """Context manager in which SIGTERM and SIGINT are ignored outside of the server's own handling.

    uvicorn raises the signal that stopped it again, after everything has been answered.
    """
    return handling((signal.SIGINT, signal.SIGTERM), _ignore)


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Context manager that silences warnings of libraries about what clients send, which could fill the log.

    This affects the whole process, so it is done only if the server runs in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        try:
            with silenced_libtiff():
                yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


@contextmanager
def silenced_libtiff() -> Iterator[None]:
    """Context manager that silences libtiff, which writes to file descriptor 2 what is wrong with a compressed TIFF.

    It is a library that Pillow is linked to; where that is done statically, it stays as it is.
    """
    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except AttributeError:
        yield
        return
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    former = set_handler(None)
    try:
        yield
    finally:
        set_handler(former)


def _ignore(number: int, frame: object) -> None:
    """Do nothing; unlike SIG_IGN it is not inherited by other programs."""
