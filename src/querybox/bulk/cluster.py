"""Ray, started on this machine for one command, or the cluster that an address names."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from querybox.errors import ConfigError, requires_extra
from querybox.interrupt import exiting_on_signals
from querybox.memory import first_line
from querybox.temporary import machine_id, remove_leftovers

LOCAL = "local"
"""What to pass instead of the address of a cluster to start Ray on this machine, and stop it at the end."""
LOCAL_CURE = (
    "it needs about 1 GB of memory, and space in /tmp and /dev/shm: free some, unset the variables RAY_... of the "
    "environment, or predict without --ray"
)
REMOTE_CURE = f"expected HOST:PORT of a cluster, 'auto' on one of its machines, or '{LOCAL}'"
FOLDER = re.compile(r"qb-ray-(\d+)-([0-9a-f]{8}).{8}")
"""Name of the folder of a local Ray, as `querybox.temporary.TEMPORARY`, but shorter: it contains sockets."""
STDERR = 2
"""File descriptor of standard error."""
OBJECT_STORE = 128 << 20
"""Size of the shared memory in bytes. Only names of files go through it, no images."""


@cache
def token() -> str:
    """Return the secret without which no other process, of whatever user, may use the Ray of this one."""
    return secrets.token_hex(32)


@contextmanager
def cluster(address: str, processes: int | None = None) -> Iterator[None]:
    """Context manager in which Ray is connected. Nothing is sent to its authors.

    Args:
        address: `LOCAL`, or the address of a cluster: ``HOST:PORT``, or ``auto`` for the one that this machine is in.
        processes: Number of processes of a local Ray; None for one for each core.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: There is no such cluster; or Ray cannot be started, or not on the loopback interface alone.
    """
    if address == LOCAL and "ray" in sys.modules and not token.cache_info().currsize:
        raise ConfigError(
            f"--ray {LOCAL}: Ray was imported before, without the settings that restrict it to this machine; import it "
            "later"
        )
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    if address == LOCAL:
        # With RAY_ENABLE_... the addresses are those of the loopback interface on all systems, as by default on macOS.
        settings |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token(),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_worker_niceness": "0",  # its default is 15: other programs would take most of the time of the cores
        }
    with environment(settings):
        with requires_extra("ray", "--ray"):
            import ray.data
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what is wrong is raised
        ray.data.DataContext.get_current().enable_progress_bars = False
        connected = local_ray(processes) if address == LOCAL else remote_ray(address)
        # Ray, once it is connected, handles SIGTERM by printing a stack trace and aborting.
        with connected, exiting_on_signals():
            yield


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Context manager that sets variables of the environment, and restores them."""
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def no_stderr() -> Iterator[None]:
    """Context manager in which nothing is written to standard error, not even by libraries in C++."""
    try:
        former = os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDERR)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(former, STDERR)
        os.close(former)


@contextmanager
def local_ray(processes: int | None) -> Iterator[None]:
    """Context manager that starts Ray without dashboard, with its files in a folder that only this user can read.

    Such folders of processes that were killed are removed.

    Raises:
        ConfigError: It can be reached from other machines, because it was imported with other settings.
    """
    import ray

    place = Path("/tmp")  # noqa: S108 - the names of sockets in it have to be short
    if not place.is_dir():
        place = Path(tempfile.gettempdir())
    remove_leftovers(place, FOLDER)
    folder = tempfile.mkdtemp(prefix=f"qb-ray-{os.getpid()}-{machine_id()}", dir=place)
    try:
        connect(
            LOCAL,
            num_cpus=processes,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            _temp_dir=folder,
        )
        found = ray.util.get_node_ip_address()
        if not ip_address(found).is_loopback:
            raise ConfigError(
                f"--ray {LOCAL}: Ray would listen on {found}, which other machines may reach; unset the variables "
                "RAY_... of the environment"
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def remote_ray(address: str) -> Iterator[None]:
    """Context manager that connects to a cluster.

    Raises:
        ConfigError: There is none.
    """
    import ray

    connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def connect(address: str, **options: Any) -> None:
    """Start Ray or connect to it.

    Raises:
        ConfigError: Neither is possible.
    """
    import ray

    try:
        with no_stderr():  # where Ray says that RAY_BACKEND_LOG_LEVEL is set, before it is
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    # Ray raises many types, such as a plain Exception if a machine does not answer in time.
    except Exception as error:
        where, cure = (
            ("started on this machine", LOCAL_CURE) if address == LOCAL else ("reached", REMOTE_CURE)
        )
        raise ConfigError(f"--ray {address}: Ray cannot be {where} ({first_line(error)}); {cure}") from error
