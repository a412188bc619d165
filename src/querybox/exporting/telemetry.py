"""Keeps other packages from reporting their use over the network, and from logging warnings."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OPENVINO = "openvino_telemetry"
"""Package that OpenVINO and NNCF do without if it cannot be imported."""
ONNX_RUNTIME = "ORT_DISABLE_TELEMETRY"
"""Environment variable that ONNX Runtime reads when it is imported, for the whole process."""


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let OpenVINO, NNCF and ONNX Runtime be imported without their telemetry.

    That of OpenVINO and NNCF would start a process that opens a connection for each event, the import included, and
    write an identifier to the home directory. That of ONNX Runtime would do the same in a thread, with an identifier
    and a database in the user's cache folder; a value that the user has set for it is kept.
    """
    imported = sys.modules.get(OPENVINO)
    given = os.environ.get(ONNX_RUNTIME)
    sys.modules[OPENVINO] = None  # type: ignore[assignment]
    os.environ.setdefault(ONNX_RUNTIME, "1")
    try:
        yield
    finally:
        del sys.modules[OPENVINO]
        if imported is not None:
            sys.modules[OPENVINO] = imported
        if given is None:
            del os.environ[ONNX_RUNTIME]


@contextmanager
def without_warnings(name: str) -> Iterator[None]:
    """Hide the warnings that the package `name` logs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
