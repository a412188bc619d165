"""A run folder belongs to one process at a time."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from torture.server import fork_server

from querybox.errors import ConfigError, DiskFullError
from querybox.temporary import temporary_name
from querybox.training import RunSettings, lock, train
from querybox.training.lock import LOCK, folder_lock


@pytest.fixture(params=["flock", "file"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the system lock folders, or let it not."""
    if request.param == "file":
        monkeypatch.setattr(lock, "lock_folder", lambda _: None)
    elif sys.platform == "win32":
        pytest.skip("Windows cannot lock folders")
    return str(request.param)


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def test_a_second_run_is_refused_and_changes_nothing(
    run_settings: Callable[..., RunSettings], system: str
) -> None:
    folder = run_settings().folder
    folder.mkdir()
    if system == "file":
        (folder / LOCK).write_text(holder(process=os.getppid()))
    with folder_lock(folder) if system == "flock" else nullcontext():
        (folder / temporary_name(os.getppid())).mkdir()
        before = content_of(folder)
        for resume in (False, True):
            with pytest.raises(ConfigError, match=r"run: another process is training in this run folder"):
                train(run_settings(), resume=resume)
        assert content_of(folder) == before


@pytest.mark.usefixtures("system")
def test_what_holds_nothing_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), folder_lock(tmp_path / "runs" / "first"):
        raise ConfigError("the data cannot be read")
    assert not (tmp_path / "runs").exists()
    with folder_lock(tmp_path / "runs" / "first"):
        (tmp_path / "runs" / "first" / "run.yaml").touch()
    assert [path.name for path in (tmp_path / "runs" / "first").iterdir()] == ["run.yaml"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is a lock file instead")
def test_a_killed_process_leaves_no_lock_though_its_children_live_on(tmp_path: Path) -> None:
    receiving, sending = fork_server().Pipe(duplex=False)
    process = fork_server().Process(target=hold, args=(tmp_path, sending))
    process.start()
    child = receiving.recv()
    try:
        with pytest.raises(ConfigError), folder_lock(tmp_path):
            pass
        process.kill()
        process.join()
        os.kill(child, 0)
        with folder_lock(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(child, 9)


def hold(folder: Path, told: Connection) -> None:
    """Hold the lock of a folder, and tell the number of a child process that lives on."""
    with folder_lock(folder):
        child = os.fork()
        if child:
            told.send(child)
        time.sleep(60)


def holder(**changes: Any) -> str:
    return json.dumps(
        {"host": platform.node(), "process": 2**22 + 1, **changes}
    )  # no process has this number


@pytest.mark.parametrize(
    ("content", "stale"),
    [
        (holder(), True),
        (holder(process=os.getpid()), True),  # of a process that was killed, in a restarted container
        (holder(process=os.getppid()), False),
        (holder(host="elsewhere"), False),
        ("", False),  # just being written
        ("[]", False),
    ],
    ids=[
        "ended",
        "own",
        "running",
        "elsewhere",
        "empty",
        "list",
    ],  # the same in all processes of pytest-xdist
)
def test_the_file_of_a_process_that_has_ended_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, stale: bool
) -> None:
    monkeypatch.setattr(lock, "lock_folder", lambda _: None)
    path = tmp_path / LOCK
    path.write_text(content)
    if stale:
        with folder_lock(tmp_path):
            assert json.loads(path.read_text())["process"] == os.getpid()
        assert not path.exists()
        return
    with pytest.raises(ConfigError) as caught, folder_lock(tmp_path):
        pass
    assert f"or remove {path} if no training runs there: it names {content}" in str(caught.value)
    assert path.read_text() == content


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_file_system_that_cannot_lock_folders_gets_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("fcntl.flock", refuse)
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {
            "host": platform.node(),
            "process": os.getpid(),
        }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_folder_that_cannot_be_created_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="the run folder cannot be created"), folder_lock(tmp_path / name):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(DiskFullError, match="No space left"), folder_lock(tmp_path / "run"):
        pass
