"""Whatever Ray raises when it cannot be started or reached is told with its cause and a cure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from querybox.bulk import cluster
from querybox.bulk.cluster import connect
from querybox.errors import ConfigError
from querybox.interrupt import exiting_on_signals
from querybox.temporary import machine_id


@pytest.mark.parametrize(
    "error", [Exception, ConnectionError, RuntimeError, TimeoutError, OSError, AssertionError]
)
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("local", r"^--ray local: Ray cannot be started on this machine \(the reason\); it needs about 1 GB"),
        ("host:1", r"^--ray host:1: Ray cannot be reached \(the reason\); expected HOST:PORT of a cluster"),
    ],
)
def test_no_error_of_ray_is_bare(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], address: str, message: str
) -> None:
    def init(**_: object) -> NoReturn:
        raise error("the reason\nand the log of a process")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match=message):
        connect(address)


@pytest.mark.skipif(sys.platform == "win32", reason="another folder for temporary files")
def test_the_folder_of_a_ray_whose_command_was_killed_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folders: list[Path] = []
    ray = SimpleNamespace(
        util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"), shutdown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "connect", lambda *_, **options: folders.append(Path(options["_temp_dir"])))
    left, kept = (
        Path(tempfile.mkdtemp(prefix=f"qb-ray-{process}-{machine_id()}", dir="/tmp"))
        for process in (ended.pid, os.getppid())
    )
    try:
        with cluster.local_ray(None):
            assert not left.exists()
            (folder,) = folders
            assert folder.stat().st_mode & 0o777 == 0o700
            assert cluster.FOLDER.fullmatch(folder.name)
        assert kept.exists()
        assert not folder.exists()
    finally:
        kept.rmdir()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_exit_so_that_ray_is_stopped(name: str, code: int) -> None:
    """Ray's own handler aborts."""
    number = signal.Signals[name]
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, exiting_on_signals():
        signal.raise_signal(number)
    assert caught.value.code == code
    assert signal.getsignal(number) == handler
    former = signal.signal(number, signal.SIG_IGN)
    try:
        with exiting_on_signals():
            signal.raise_signal(number)
    finally:
        signal.signal(number, former)
