from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from querybox import interrupt
from querybox.interrupt import StopRequest


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    """Handle SIGINT as a program does: a worker of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGINT, KeyboardInterrupt)]
    + [(number, SystemExit) for number in interrupt.SIGNALS if number is not signal.SIGINT],
)
def test_the_first_signal_is_noted_and_handlers_are_put_back(
    number: signal.Signals, ending: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as request:
        signal.raise_signal(number)
    assert request.signal is number
    assert signal.getsignal(number) is before
    with pytest.raises(ending):
        request.reraise()


def test_a_launcher_may_say_it_again_at_once() -> None:
    """Ctrl-C reaches all processes of a terminal, and then a launcher hands it on."""
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert request.signal is signal.SIGINT


def test_a_later_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "DUPLICATE_SECONDS", -1.0)
    with StopRequest():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_where_another_process_was_asked_it_ends_like_sigterm() -> None:
    with pytest.raises(SystemExit) as caught:
        StopRequest().reraise()
    assert caught.value.code == 143


def test_other_threads_note_nothing() -> None:
    seen = []

    def enter() -> None:
        with StopRequest() as request:
            seen.append(request.signal)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_nohup_lets_a_run_go_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGHUP)
        assert request.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [number for number in interrupt.SIGNALS if number is not signal.SIGINT])
def test_the_exit_code_tells_the_signal(number: signal.Signals) -> None:
    request = StopRequest()
    request.signal = number
    with pytest.raises(SystemExit) as caught:
        request.reraise()
    assert caught.value.code == 128 + number


def test_ctrl_c_is_handled_in_the_background_too() -> None:
    """Shells let programs that a script starts in the background ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
    assert request.signal is signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
