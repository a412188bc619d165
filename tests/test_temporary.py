"""Temporary folders of processes that run and that were killed, on one machine and on several."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from querybox.files import atomic, write_text
from querybox.temporary import leftovers, remove_leftovers, temporary_folder, temporary_name

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX alone")


def make(folder: Path, name: str, age: float = 0.0) -> str:
    """Make a temporary folder with a file, changed some seconds ago; return its name."""
    (folder / name).mkdir()
    (folder / name / "half").touch()
    changed = time.time() - age
    for path in (folder / name / "half", folder / name):
        os.utime(path, (changed, changed))
    return name


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_left_over_files_are_those_of_processes_that_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = temporary_name(os.getppid())
    kept = {
        make(tmp_path, running),
        make(tmp_path, ".a.tmp"),
        make(tmp_path, f"{temporary_name(ended.pid)}.bak"),
    }
    left = {
        make(tmp_path, temporary_name(ended.pid)),
        make(
            tmp_path, temporary_name(os.getpid())
        ),  # of a process with the same id, in a restarted container
        make(tmp_path, temporary_name(os.getppid()), age=1e9),  # before the process with this id started
    }
    assert {path.name for path in leftovers(tmp_path)} == left
    remove_leftovers(tmp_path)
    assert names(tmp_path) == kept


def test_processes_of_other_machines_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of a process in a shared folder may be that of none here, of any other, and of this one."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr("querybox.temporary.machine_id", lambda: "0123abcd")
        processes = (ended.pid, os.getpid(), os.getppid())
        kept = {make(tmp_path, temporary_name(process), age=80_000) for process in processes}
        left = {make(tmp_path, temporary_name(process), age=90_000) for process in processes}
        in_use = make(tmp_path, temporary_name(ended.pid), age=90_000)
    (tmp_path / in_use / "half").write_text("of a video")
    os.utime(tmp_path / in_use, (0, 0))  # when the file in it was created
    assert {path.name for path in leftovers(tmp_path)} == left
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {*kept, in_use}


@POSIX
def test_a_killed_process_that_nobody_waits_for_has_ended(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = make(tmp_path, temporary_name(killed.pid))
    assert not leftovers(tmp_path)
    os.kill(killed.pid, signal.SIGKILL)
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert leftovers(tmp_path) == [tmp_path / name]
    killed.communicate()


def test_whoever_writes_first_removes_what_is_left(tmp_path: Path) -> None:
    """Not what it writes itself, in this thread or another one."""
    make(tmp_path, temporary_name(os.getpid()))
    with temporary_folder(tmp_path / "model.onnx") as folder:
        assert names(tmp_path) == {folder.name}
        make(tmp_path, other := temporary_name(os.getpid()))
        write_text(tmp_path / "a.txt", "the folder is looked at once")
        assert names(tmp_path) == {folder.name, other, "a.txt"}
        remove_leftovers(tmp_path)
        assert names(tmp_path) == {folder.name, "a.txt"}
    assert names(tmp_path) == {"a.txt"}


@POSIX
def test_a_link_is_no_left_over_folder(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "own.txt").touch()
    (tmp_path / temporary_name(os.getpid())).symlink_to("target")
    remove_leftovers(tmp_path)
    assert (tmp_path / "target" / "own.txt").exists()


def test_what_a_library_writes_beside_a_temporary_file_is_in_its_folder(tmp_path: Path) -> None:
    """safetensors writes to a temporary file of its own, which it renames at the end."""
    with atomic(tmp_path / "a.safetensors") as temporary:
        (temporary.parent / ".tmpAbCdEf").write_bytes(b"half")
        assert list(tmp_path.iterdir()) == [temporary.parent]
    assert names(tmp_path) == {"a.safetensors"}
