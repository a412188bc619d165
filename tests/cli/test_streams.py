"""Standard streams that are closed, full or missing."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from dataset_writers import write_boxes

from querybox.cli import main
from querybox.cli.streams import is_closed, prepare_streams, print_json, print_summary

FULL = Path("/dev/full")


@pytest.fixture
def boxes(tmp_path: Path) -> str:
    return str(write_boxes(tmp_path / "boxes", (16, 16), sides=(3, 8)))


@pytest.fixture
def broken_stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Let standard output be a closed pipe or a full disk, also with PYTHONUNBUFFERED."""
    opened: list[io.TextIOWrapper] = []

    def break_stdout(how: str, *, buffered: bool = True) -> None:
        if how == "closed":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            if not FULL.exists():
                pytest.skip("there is no /dev/full")
            writer = os.open(FULL, os.O_WRONLY)
        binary = os.fdopen(writer, "wb", -1 if buffered else 0)
        opened.append(io.TextIOWrapper(binary, write_through=not buffered))
        monkeypatch.setattr(sys, "stdout", opened[-1])

    yield break_stdout
    monkeypatch.undo()
    for stream in opened:
        stream.close()  # raises if what was printed has not been discarded


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_gone_is_no_error(
    boxes: str, broken_stdout: Callable[[str], None], capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    broken_stdout("closed")
    assert main(["validate", boxes, *options]) == 141  # not 1, which means that the data cannot be used
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("how", "code"), [("closed", 141), ("full", 2)])
def test_an_unbuffered_stdout_is_no_other_one(
    boxes: str, broken_stdout: Callable[..., None], capfd: pytest.CaptureFixture[str], how: str, code: int
) -> None:
    broken_stdout(how, buffered=False)
    assert main(["validate", boxes]) == code
    expected = (
        "" if how == "closed" else "standard output: No space left on device; write it to another place\n"
    )
    assert capfd.readouterr().err == expected


def test_windows_calls_a_reader_that_has_gone_an_invalid_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_closed(BrokenPipeError())
    assert not is_closed(OSError(errno.EINVAL, "Invalid argument"))
    monkeypatch.setattr(os, "name", "nt")
    assert is_closed(OSError(errno.EINVAL, "Invalid argument"))
    assert not is_closed(OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", '{"name": "é 😀"}'),
        ("cp1252", r'{"name": "\u00e9 \ud83d\ude00"}'),
        ("cp932", r'{"name": "\u00e9 \ud83d\ude00"}'),
    ],
)
def test_json_is_the_same_json_in_every_encoding(
    encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding=encoding))
    prepare_streams()
    print_json({"name": "é 😀"})
    sys.stdout.flush()
    assert output.getvalue().decode("utf-8").strip() == printed
    assert json.loads(output.getvalue()) == {"name": "é 😀"}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_stdout_is_named(
    boxes: str, broken_stdout: Callable[[str], None], capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    broken_stdout("full")
    assert main(["validate", boxes, *options]) == 2
    assert capfd.readouterr().err == ("standard output: No space left on device; write it to another place\n")


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_summary_that_cannot_be_shown_is_no_error(broken_stdout: Callable[[str], None], how: str) -> None:
    broken_stdout(how)
    print_summary("Results are in runs/mine")
    sys.stdout.flush()


def test_an_error_that_cannot_be_shown_keeps_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        for options in ([], ["--debug"]):
            assert main(["validate", str(tmp_path / "absent"), *options]) == 2
    with suppress(OSError):
        stream.close()


def test_a_process_may_have_no_streams(boxes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["validate", boxes]) == 0
    prepare_streams()
    for stream in (sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()
