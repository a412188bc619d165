"""The commit of a run is read from git's files, and no program is run in a folder that may be a stranger's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from querybox.training.environment import describe_environment
from querybox.training.git import commit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = COMMIT[::-1]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs git in a new repository with one commit."""
    options = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | options | {"GIT_CONFIG_GLOBAL": os.devnull}

    def run(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), *words]
        answer = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        return answer.stdout.strip()

    run("init", "--quiet")
    run("commit", "--quiet", "--allow-empty", "--message=first")
    return run


def test_the_commit_is_that_of_git(git: Callable[..., str], tmp_path: Path) -> None:
    expected = git("rev-parse", "HEAD")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert len(expected) == 40
    assert commit(tmp_path) == commit(tmp_path / "a" / "b") == expected
    git("pack-refs", "--all")
    assert not list((tmp_path / ".git" / "refs" / "heads").iterdir())
    assert commit(tmp_path) == expected
    git("worktree", "add", "--quiet", "-b", "feature/x", str(tmp_path / "tree"))
    git("commit", "--quiet", "--allow-empty", "--message=second")
    assert commit(tmp_path / "tree") == expected
    assert commit(tmp_path) == git("rev-parse", "HEAD") != expected
    git("checkout", "--quiet", "--detach", expected)
    assert commit(tmp_path) == expected


def test_no_program_of_a_hostile_configuration_is_run(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = git("rev-parse", "HEAD")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'EXECUTED'}\n")
    program.chmod(0o755)
    git("config", "core.fsmonitor", str(program))
    monkeypatch.chdir(tmp_path)
    assert describe_environment(processes=1)["commit"] == expected
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    "head",
    [
        "",
        "0123",
        "ref: refs/heads/../../../secret",
        "ref: /secret",
        "ref: secret",
        "ref: refs/heads/none",
        f"{COMMIT}\n{COMMIT}",
        "ref: refs/heads/\x1b[31m",
    ],
)
def test_a_malformed_head_is_no_commit(head: str, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "secret").write_text(f"{COMMIT}\n")
    (tmp_path / ".git" / "secret").write_text(f"{COMMIT}\n")
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert commit(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_files_of_git_that_are_no_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / ".git")
    assert commit(tmp_path / "a") is None
    folder = tmp_path / "b" / ".git"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "HEAD")
    assert commit(tmp_path / "b") is None
    (folder / "HEAD").unlink()
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "refs" / "heads").mkdir(parents=True)
    os.mkfifo(folder / "refs" / "heads" / "main")
    (folder / "packed-refs").write_text(f"# pack-refs\n{OTHER} refs/heads/main2\n{COMMIT} refs/heads/main\n")
    assert commit(tmp_path / "b") == COMMIT
