"""``querybox predict`` on a stream: what is written is valid, however it ends."""

from __future__ import annotations

import csv
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from squares import SquareEngine, picture
from streams import Connection, endless, moving, serve

from querybox.inference import reader


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("querybox.cli.predict.load_model", lambda *_, **__: SquareEngine())
    monkeypatch.setattr(reader, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(reader, "MAX_ATTEMPTS", 2)


@contextmanager
def signal_after(path: Path, number: signal.Signals) -> Iterator[None]:
    """Send a signal to this process as soon as a file has several lines."""
    done = threading.Event()

    def send() -> None:
        while not done.wait(0.02):
            if path.exists() and path.read_bytes().count(b"\n") > 3:
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def slow(connection: Connection) -> None:
    """Show a square that is almost still, without an end."""
    connection.answer()
    connection.show(cycle([picture(10, None), picture(11, None)]), wait=0.03)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_writes_a_row_for_each_object_and_a_video(run: Any, tmp_path: Path) -> None:
    import av

    words = ("--allow-network", "--max-frames", "12", "--track", "--format", "csv,mot,pictures")
    begin = datetime.now(UTC)
    with serve(slow) as server:
        url = server.url.replace("//", "//me:secret@")
        code, out, err = run("predict", "model", url, *words)
    assert (code, err) == (0, "")
    assert out.startswith(f"Found 12 objects in {server.url}: 12 of ")
    assert out.endswith("opened 1 time. Results are in predictions\n")
    folder = tmp_path / "predictions"
    assert {path.name for path in folder.iterdir()} == {"detections.csv", "live.mp4", "mot"}
    table = rows(folder / "detections.csv")
    numbers = [int(row["source"].removeprefix(f"{server.url}#")) for row in table]
    assert numbers == sorted(set(numbers))
    assert len(table) == 12
    assert {row["name"] for row in table} == {"red"}
    tracked = [number for number, row in zip(numbers, table, strict=True) if row["track_id"]]
    assert 0 < len(tracked) < 12  # the first one is in no track yet
    times = [datetime.fromisoformat(row["time"]) for row in table]
    assert begin < times[0] < times[-1] < datetime.now(UTC)
    read_back = np.loadtxt(folder / "mot" / "live.txt", delimiter=",", ndmin=2)
    assert read_back[:, 0].tolist() == [number + 1 for number in tracked]
    with av.open(folder / "live.mp4") as container:
        shown = [float(frame.time or 0) for frame in container.decode(video=0)]
    expected = [(each - times[0]).total_seconds() for each in times]
    assert shown == pytest.approx(expected, abs=0.002)
    assert not [path for path in folder.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_what_was_written_is_valid(
    run: Any, tmp_path: Path, number: signal.Signals, ending: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import av

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    table, code = tmp_path / "predictions" / "detections.csv", None
    with serve(endless) as server, signal_after(table, number):
        try:
            code = run("predict", "model", server.url, "--allow-network", "--format", "csv,pictures")[0]
        except SystemExit as error:
            code = error.code
    signal.signal(signal.SIGINT, before)
    assert code == ending
    assert len(rows(table)) >= 3
    with av.open(table.with_name("live.mp4")) as container:
        assert len(list(container.decode(video=0))) == len(rows(table))


def test_a_stream_that_is_lost_is_told_and_what_was_found_is_kept(run: Any, tmp_path: Path) -> None:
    def script(connection: Connection) -> None:
        if connection.number == 0:
            connection.answer()
            connection.show(islice(moving(), 5), wait=0.1)

    with serve(script) as server:
        code, out, err = run("predict", "model", server.url, "--allow-network")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"ImageError: {server.url}: the stream was given up (")
    assert f"Found {len(rows(tmp_path / 'predictions' / 'detections.csv'))} objects in" in out


def test_a_duration_ends_it_and_no_frame_is_no_video(run: Any, tmp_path: Path) -> None:
    def silent(connection: Connection) -> None:
        connection.answer()
        connection.wait(60)

    with serve(silent) as server:
        begin = time.monotonic()
        words = ("--allow-network", "--duration", "0.3s", "--format", "csv,pictures")
        code, out, err = run("predict", "model", server.url, *words)
        assert time.monotonic() - begin < 5
    assert (code, "0 of 0 frames were processed" in out) == (1, True)
    assert err.startswith(f"ImageError: {server.url}: no frame was received in 0.3 s")
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["detections.csv"]
    assert rows(tmp_path / "predictions" / "detections.csv") == []


def test_sizes_that_change_are_fitted_into_the_video(run: Any, tmp_path: Path) -> None:
    import av

    def script(connection: Connection) -> None:
        connection.answer()
        while True:
            for pixels in (picture(10, None), picture(10, None)[:, :80], picture(10, None)[:30]):
                connection.show([pixels], wait=0.05)

    with serve(script) as server:
        words = ("--allow-network", "--max-frames", "9", "--format", "csv,pictures")
        assert run("predict", "model", server.url, *words)[0] == 0
    with av.open(tmp_path / "predictions" / "live.mp4") as container:
        assert len({(frame.height, frame.width) for frame in container.decode(video=0)}) == 1


def test_nothing_is_connected_to_unasked_and_mistakes_are_named(run: Any, tmp_path: Path) -> None:
    with serve(endless) as server:
        url = server.url.replace("//", "//me:secret@")
        for words, message in (
            (
                ("model", url),
                "is on the network, and querybox connects to nothing without permission; allow it with --allow-network",
            ),
            ((url, "model"), "is a live source, and not a model; the model comes first"),
            (("model", url, "a.jpg"), "is a live source, which has no end; expected no other source"),
            (("model", url, "--allow-network", "--format", "coco"), "--format got 'coco' for a live source"),
            (("model", url, "--allow-network", "--format", "mot"), "without tracking; add --track"),
            (
                ("model", url, "--allow-network", "--duration", "soon"),
                "--duration got 'soon'; expected a duration",
            ),
            (("model", url, "--allow-network", "--max-frames", "0"), "LiveStream got max_frames=0; expected"),
            (
                ("model", "a.jpg", "--max-frames", "3"),
                "--max-frames and --duration got files; expected a camera",
            ),
            (("model", "udp://secret:1"), "udp://: the protocol is not supported"),
        ):
            code, out, err = run("predict", *words, "--debug")
            assert (code, out) == (2, "")
            assert message in err
            assert "secret" not in err
        assert server.connections == 0
    assert not (tmp_path / "predictions").exists()
