from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

import querybox
from querybox.cli import main as entry
from querybox.cli.main import app, log_to_stderr, prepare_platform, quote_paths
from querybox.errors import ConfigError

COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "trace",
    "inspect",
    "export",
    "convert",
    "benchmark",
    "info",
    "validate",
)


def test_help_names_every_command(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)
    assert "--debug" in out
    assert "Exit codes: 0 success;" in out
    assert run()[1] == out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_examples(run: Any, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert out.count(f"querybox {command}") >= 3
    assert out.endswith("\n\nExit codes and --debug: see querybox --help.\n")


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"querybox {querybox.__version__}\n", "")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys; from querybox.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "False"


def test_python_m_querybox_exits_with_the_code() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "querybox", "fly"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["fly"], ["fly", "querybox --help"]),
        (["predcit"], ["predcit", "predict"]),
        (["info", "--colour", "red"], ["--colour", "querybox info --help"]),
        (["evaluate", "m"], ["evaluate got no DATA: A dataset: COCO, Pascal", "querybox evaluate --help"]),
        (["evaluate"], ["evaluate got no MODEL: A checkpoint"]),
        (["export", "m"], ["export got no --to: onnx (ONNX Runtime and others), openvino"]),
        (["predict", "m", "a.jpg", "--threshold"], ["got no value for --threshold: Minimum score"]),
        (["predict", "m", "a.jpg", "--threshold", "high"], ["--threshold", "high", "float"]),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(run: Any, words: list[str], parts: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


def test_a_second_interrupt_ends_the_process_without_stack_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers repeat Ctrl-C, which would interrupt what Python does at the end of the process."""

    def interrupt(_: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("querybox.cli.info.is_model", interrupt)
    monkeypatch.setattr(sys, "argv", ["querybox", "info", "photos"])
    before = signal.getsignal(signal.SIGINT)
    try:
        assert entry(["info", "photos"]) == 130
        assert signal.getsignal(signal.SIGINT) is before
        assert entry() == 130
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (ConfigError("a: got b;\n expected c"), 2, "ConfigError: a: got b; expected c\n"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: Permission denied; check"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            UnicodeEncodeError("ascii", "d\xe4ta", 1, 2, "ordinal not in range(128)"),
            2,
            "ConfigError: the file name 'd\xe4ta' cannot be written in ASCII, the encoding of this process",
        ),
        (MemoryError(), 2, "OutOfMemoryError: there is not enough memory (MemoryError); use smaller images"),
        (
            RuntimeError("CUDA out of memory.\nGPU 0"),
            2,
            "not enough memory (CUDA out of memory.); use smaller",
        ),
    ],
)
def test_errors_become_one_line_and_a_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    def fail(target: Path) -> bool:
        raise raised

    monkeypatch.setattr("querybox.cli.info.is_model", fail)
    got, _, err = run("info", "photos")
    assert got == code
    assert line in err
    assert err.count("\n") == 1
    assert "Traceback" not in err

    got, _, err = run("info", "photos", "--debug")
    assert got == code
    assert "Traceback" in err
    assert line in err


@pytest.mark.parametrize(
    ("message", "words", "quoted"),
    [
        ("my cats: no such file", ["info", "my cats"], "'my cats': no such file"),
        ("cats: no such file", ["info", "cats"], "cats: no such file"),
        ("my cats/a.json: bad", ["info", "my cats"], "'my cats/a.json': bad"),
        (
            "my run.yaml and command line: bad",
            ["train", "my run.yaml"],
            "'my run.yaml' and command line: bad",
        ),
        (
            "no data at my cats; set data.val",
            ["train", "data.val=my cats"],
            "no data at 'my cats'; set data.val",
        ),
        ("a.jpg is not in my cats", ["predict", "my cats", "a.jpg"], "a.jpg is not in 'my cats'"),
        ("use 'my cats'", ["info", "my cats"], "use 'my cats'"),
        ("THERE/new cats/a b.jpg: broken", ["predict", "new cats"], "'THERE/new cats/a b.jpg': broken"),
        ("THERE/my cats/x.jpg: broken", ["predict", "my cats"], "'THERE/my cats/x.jpg': broken"),
    ],
)
def test_paths_with_spaces_are_quoted(
    message: str, words: list[str], quoted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new cats").mkdir()
    (tmp_path / "new cats" / "a b.jpg").touch()
    there = str(tmp_path)
    assert quote_paths(message.replace("THERE", there), words) == quoted.replace("THERE", there)


@pytest.mark.parametrize(("word", "expected"), [("2.5", None), ("640.0", 640), ("1e3", None), ("3", 3)])
def test_an_integer_has_no_fraction(run: Any, word: str, expected: int | None) -> None:
    """The cyclopts package would round it, and the command would do something else than what was asked for."""
    words = ["benchmark", "model.onnx", "--batch-size", word]
    if expected is None:
        code, _, err = run(*words)
        assert code == 2
        assert err.startswith("Invalid value for --batch-size: ")
    else:
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        assert bound.arguments["batch_size"] == expected


def test_an_error_in_a_folder_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert entry(["info", "model.safetensors"]) == 2
    assert "model.safetensors: no such" in capsys.readouterr().err


def test_an_error_quotes_the_path(run: Any) -> None:
    assert run("info", "my cats")[2].startswith("DataError: 'my cats': no such file or folder; expected")


def test_messages_of_the_log_appear_above_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    with log_to_stderr(), Progress(console=Console(file=stream, force_terminal=True), auto_refresh=False):
        logging.getLogger("querybox.data").warning("3 boxes are clipped")
    assert "3 boxes are clipped\n" in stream.getvalue()
    assert "clipped" not in capsys.readouterr().err


def test_a_bug_is_not_dressed_up(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(target: Path) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr("querybox.cli.info.is_model", fail)
    with pytest.raises(ZeroDivisionError):
        run("info", "photos")


def test_main_reads_the_words_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["querybox", "--version"])
    assert entry() == 0
    assert querybox.__version__ in capsys.readouterr().out


def test_characters_that_the_terminal_lacks_are_escaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="cp1252"))
    prepare_platform()
    print("細胞 in 3 images")
    sys.stdout.flush()
    assert output.getvalue().split(b" ")[0] == rb"\u7d30\u80de"


@pytest.mark.parametrize(("platform", "value"), [("darwin", "1"), ("linux", None)])
def test_operators_that_an_apple_gpu_lacks_run_on_the_cpu(
    platform: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "platform", platform)
    prepare_platform()
    assert os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == value
