"""A server from its start to its stop, as the command runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from servers import SECONDS, Client, GatedEngine, Reply, picture, serving

from querybox.cli import main
from querybox.detector import Detector

Begin = Callable[[Callable[[], Reply]], Callable[[], Reply]]


@pytest.fixture
def model(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Run something in another thread; it has to end, without an error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(SECONDS)
    assert errors == []


def test_the_command_serves_until_sigterm(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Reply] = []
    port = free_port()

    def ask() -> None:
        client = Client(port)
        wait_for(client)
        seen.append(client.predict(picture()))
        token = {"Authorization": "Bearer 0123456789abcdef"}
        seen.append(client.predict(picture(), **token))
        damaged = picture(kind="TIFF")  # of which Pillow warns
        damaged = damaged[:4] + (len(damaged) - 30).to_bytes(4, "little") + damaged[8:]
        compressed = bytearray(picture(kind="TIFF", compression="tiff_lzw"))  # of which libtiff warns
        compressed[8:24] = b"\xff" * 16
        seen.append(client.predict(damaged, **token))
        seen.append(client.predict(bytes(compressed), **token))
        broken_form = {"Content-Type": "multipart/form-data; boundary=boundary"}
        seen.append(client.request("/predict", b"--boundary\r\nx: y\n", broken_form | token))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("QUERYBOX_TOKEN", "0123456789abcdef")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    with meanwhile(ask):
        assert main(["serve", str(model), "--port", str(port)]) == 0
    assert torch.get_num_threads() == threads
    assert [answer.status for answer in seen] == [401, 200, 422, 422, 400]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    output, errors = capfd.readouterr()
    assert output == ""
    assert re.sub(r"\d+$", "PORT", errors, flags=re.MULTILINE).splitlines() == [
        "the server is ready at http://127.0.0.1:PORT",
        "the server has stopped",
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(client: Client) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(ConnectionRefusedError):
            assert client.request("/health").status == 200
            return
        time.sleep(0.01)
    pytest.fail("the server does not listen")


def test_a_stop_answers_what_was_taken_and_refuses_the_rest(gated: GatedEngine, at_once: Begin) -> None:
    with serving([gated]) as client:
        gated.gate.clear()
        asked = [at_once(partial(client.predict, picture(seed=seed))) for seed in range(4)]
        client.wait_for("querybox_images_in_progress", 4)
        with idle(client) as quiet:
            client.stop()
            assert quiet.recv(1) == b""  # closed, since no request is in progress there
        with pytest.raises(ConnectionError):
            client.predict(picture())
        gated.gate.set()
        assert [answer().status for answer in asked] == [200] * 4


@contextmanager
def idle(client: Client) -> Iterator[socket.socket]:
    """Keep a connection open after its first answer."""
    with client.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1000)
        yield connection


def test_arguments_that_cannot_be_are_told(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cases = {
        (
            "--host",
            "0.0.0.0",
        ): "ConfigError: --host 0.0.0.0 can be reached by other machines, and there is no token",
        ("--queue", "0"): "ConfigError: serve got queue=0; expected an integer, 1 to 4096",
        ("--token", "short"): "ConfigError: serve got a token of 5 characters; expected at least 16",
    }
    for options, message in cases.items():
        assert main(["serve", str(model), *options]) == 2
        assert capfd.readouterr().err.startswith(message)


def test_a_model_that_cannot_be_read_frees_the_port(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert main(["serve", str(tmp_path / "absent"), "--port", str(port)]) == 2
    assert "absent" in capfd.readouterr().err
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_without_the_packages_the_extra_is_named(
    model: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("querybox.serving.")]:
        monkeypatch.delitem(sys.modules, name)  # they are imported anew
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(model)]) == 2
    assert capfd.readouterr().err == (
        "MissingExtraError: querybox serve needs the package fastapi, which is not installed: "
        "pip install 'querybox[serve]'\n"
    )
