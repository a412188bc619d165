"""Atomic writing on every system."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from querybox.checkpoints.files import save_tensors
from querybox.errors import ConfigError, DataError, DiskFullError
from querybox.files import (
    atomic,
    cache_folder,
    contents,
    growing,
    is_regular,
    output_folder,
    require_own,
    require_regular,
    restore,
    write_text,
)
from querybox.temporary import leftovers, temporary_name


def test_a_system_that_cannot_open_folders_can_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to open a folder, and has no `O_DIRECTORY`."""
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if (
            Path(path).is_dir() and "dir_fd" not in options
        ):  # with which `rmtree` opens folders, but not on Windows
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    write_text(tmp_path / "a.txt", "naïve\n")
    assert (tmp_path / "a.txt").read_bytes() == "naïve\n".encode()
    assert not leftovers(tmp_path)


@contextmanager
def small_files(limit: int = 50_000) -> Iterator[None]:
    """Context manager in which files cannot be larger than `limit` bytes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_what_was_written_before_the_disk_was_full_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("of an older source")
    message = r"a\.csv: cannot be written \(File too large\): .* free; what was written before is kept\."

    def write() -> None:
        with growing(tmp_path / "a.csv") as path, path.open("x", buffering=1) as file:
            file.writelines(f"row {number}\n" for number in range(10_000))

    with small_files(), pytest.raises(DiskFullError, match=message):
        write()
    content = (tmp_path / "a.csv").read_text()
    assert content.startswith("row 0\nrow 1\n")
    assert len(content) == 50_000


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_library_that_does_not_tell_a_full_disk(tmp_path: Path) -> None:
    """PyTorch raises a RuntimeError about a position, also where there is no space."""
    with (
        small_files(),
        pytest.raises(DiskFullError, match=r"a\.pth: cannot be written .* MB are free"),
        atomic(tmp_path / "a.pth") as temporary,
    ):
        torch.save(torch.zeros(100_000), temporary)
    with pytest.raises(RuntimeError, match="a bug"), atomic(tmp_path / "a.pth"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_library_that_removes_what_it_could_not_complete(tmp_path: Path) -> None:
    """So does OpenVINO, after which there is space again, though not enough."""

    def fail(size: int) -> None:
        with atomic(tmp_path / "a.xml", size=size):
            raise RuntimeError("iostream error")

    with small_files(3_000_000):
        with pytest.raises(DiskFullError, match=r"a\.xml: cannot be written .* 4\.0 MB are needed"):
            fail(4_000_000)
        with pytest.raises(RuntimeError, match="iostream error"):
            fail(1_000_000)


def test_a_folder_for_which_there_is_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskFullError, match=r"a\.txt: cannot be written .* MB are free"):
        write_text(tmp_path / "new" / "a.txt", "")


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="folders cannot be opened")
def test_the_entry_of_the_folder_is_written_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(os.path.samestat(os.fstat(descriptor), tmp_path.stat()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "text")
    assert synced == [False, True]  # the file, then its folder


POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has neither a umask nor named pipes")


@POSIX
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_gives_a_new_file_its_permissions(umask: int, mode: int, tmp_path: Path) -> None:
    former = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "text")
        with atomic(tmp_path / "a.safetensors") as temporary:
            save_tensors(
                {"a": torch.zeros(1)}, temporary, {}
            )  # which creates a file of its own, for the owner alone
    finally:
        os.umask(former)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


@POSIX
def test_an_existing_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640


@POSIX
def test_the_target_of_a_link_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "target").chmod(0o600)
    (tmp_path / "soft").symlink_to("target")
    (tmp_path / "hard").hardlink_to(tmp_path / "target")
    for name in ("soft", "hard"):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "target").read_text() == "old"


@POSIX
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(ConfigError, match=f"{name}: is a named pipe; expected a regular file"):
            write_text(tmp_path / name, "text")
        require_regular(tmp_path / "missing", DataError)
    with pytest.raises(DataError, match="is a device"):
        require_regular(Path(os.devnull), DataError)
    with pytest.raises(ConfigError, match="is a folder"):
        write_text(tmp_path, "text")
    assert not is_regular(tmp_path / "link")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


@pytest.mark.parametrize("refusals", [1, 4, 5])
def test_a_file_that_is_open_for_a_moment_is_replaced(
    refusals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows new files are open while a virus scanner reads them, and open files cannot be moved or replaced."""
    real, calls = Path.replace, []
    pauses: list[float] = []

    def replace(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) <= refusals:
            raise PermissionError(13, "Access is denied", str(self), None, str(target))
        return real(self, target)

    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(time, "sleep", pauses.append)
    refused = pytest.raises(PermissionError) if refusals == 5 else nullcontext()
    with refused as caught:
        write_text(path, "new")
    assert path.read_text() == ("old" if caught else "new")
    assert caught is None or caught.value.filename == str(path)  # that of the user, not the temporary one
    assert pauses == [0.25] * min(refusals, 4)
    assert not leftovers(tmp_path)


def test_a_name_of_any_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_what_file_managers_and_killed_processes_leave_is_no_content(tmp_path: Path) -> None:
    (tmp_path / temporary_name(os.getppid())).mkdir()
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert contents(tmp_path) == set()
    (tmp_path / ".hidden").touch()
    assert contents(tmp_path) == {".hidden"}


def test_only_files_of_querybox_are_overwritten(tmp_path: Path) -> None:
    require_own(tmp_path / "missing.html")
    (tmp_path / "empty.html").touch()
    require_own(tmp_path / "empty.html")
    (tmp_path / "page.html").write_text(f"{'x' * 100_000}querybox")
    require_own(tmp_path / "page.html")
    (tmp_path / "data.json").write_text('{"images": []}')
    with pytest.raises(
        ConfigError, match=r"data\.json: exists, and was not written by querybox; .* remove it"
    ):
        require_own(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("place", "cure"),
    [
        ("s3://bucket/train.parquet", "upload it again"),
        ("photos/train.parquet", "copy or download it again, or write it again if you made it"),
        ("lib/site-packages/a/a.parquet", "install its package again: pip install --force-reinstall"),
        (
            "hub/datasets--me--cats/snapshots/12/data/train.parquet",
            "remove {}/hub/datasets--me--cats, the copy in the Hub's cache, and it is downloaded again",
        ),
        ("downloaded/data/train.parquet", "download it again from the Hub"),
    ],
)
def test_how_to_restore_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, cure: str
) -> None:
    (tmp_path / "downloaded/.cache/huggingface/download").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cure = cure.format(tmp_path).replace("/", os.sep) if "{}" in cure else cure
    assert restore(place) == cure
    assert "://" in place or restore(tmp_path / place) == cure


def test_a_folder_without_permission_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with a temporary one, of which nobody knows."""
    monkeypatch.setattr(
        Path, "mkdir", mock.Mock(side_effect=[None, PermissionError(13, "Permission denied", "x.tmp")])
    )
    with pytest.raises(PermissionError) as caught:
        write_text(tmp_path / "a.html", "")
    assert caught.value.filename == str(tmp_path / "a.html")


def test_a_folder_for_results_is_removed_unless_something_is_in_it(tmp_path: Path) -> None:
    for written in (False, True):
        with suppress(KeyboardInterrupt), output_folder(tmp_path / "new" / "results"):
            if written:
                (tmp_path / "new" / "results" / "a.txt").touch()
            raise KeyboardInterrupt
        assert (tmp_path / "new").exists() == written
    with output_folder(tmp_path):
        pass
    assert tmp_path.exists()


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    message = r"the folder is read-only; .* set another --output"
    with pytest.raises(ConfigError, match=message), output_folder(tmp_path):
        pytest.fail("the work is done")


def test_a_user_without_a_home_is_told_how_to_name_a_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As random users of containers are."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", mock.Mock(side_effect=RuntimeError))
    with pytest.raises(ConfigError, match=r"no home, .*; set XDG_CACHE_HOME"):
        cache_folder()
