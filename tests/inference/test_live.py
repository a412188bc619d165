"""Live sources: the newest frame first, whatever a camera and the network do; and nothing is connected to unasked."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from squares import SquareEngine, picture
from streams import Connection, RtspCamera, endless, moving, serve, transport_stream

from querybox.errors import ConfigError, ImageError
from querybox.inference import reader
from querybox.inference.live import LiveStream
from querybox.inference.predict import predict
from querybox.inference.sources import find_sources


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(reader, "MAX_ATTEMPTS", 3)


def opened(url: str, **limits: float) -> LiveStream:
    return LiveStream(url, allow_network=True, **{"duration": 60, **limits})  # type: ignore[arg-type]


def test_a_slow_consumer_gets_the_newest_frame() -> None:
    with serve(endless) as server, opened(server.url, max_frames=5) as stream:
        numbers = []
        for frame in stream:
            numbers.append(frame.number)
            time.sleep(0.3)  # during which many arrive
        text = stream.summary()
    assert all(after - before > 2 for before, after in pairwise(numbers)), numbers
    found = re.fullmatch(
        r"5 of (\d+) frames were processed, (\d+) dropped because .* 0 damaged; .* 1 time", text
    )
    assert found, text
    assert int(found[1]) - 5 == int(found[2]) > 8


def test_frames_are_what_was_sent_and_have_the_time_of_their_arrival() -> None:
    def script(connection: Connection) -> None:
        connection.answer()
        connection.show((picture(10 * number, None) for number in range(1, 9)), wait=0.15)

    before = time.time()
    with serve(script) as server, opened(server.url, max_frames=6) as stream:
        frames = list(stream)
    for frame in frames:
        expected = picture(10 * (frame.number + 1), None).astype(int)
        assert np.abs(frame.pixels.astype(int) - expected).mean() < 4
    times = [frame.time for frame in frames]
    assert before - 0.1 < times[0] < times[-1] < time.time() + 0.1
    assert times == sorted(set(times))


def test_a_stream_that_is_cut_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    def script(connection: Connection) -> None:
        if connection.number == 1:
            connection.send(b"garbage")
            return
        connection.answer()
        connection.show(islice(moving(), 4), wait=0.05)

    with serve(script) as server, opened(server.url.replace("//", "//me:secret@"), max_frames=7) as stream:
        numbers = [frame.number for frame in stream]
        assert server.connections >= 3  # more if a frame was dropped
        assert stream.summary().endswith(f"opened {server.connections - 1} times")
    assert numbers == sorted(set(numbers))
    assert caplog.messages[0].startswith(f"http://127.0.0.1:{server.port}/video: ")
    waits = [message.rpartition("connecting again in ")[2] for message in caplog.messages]
    assert waits[:2] == ["0.02 s", "0.04 s"]
    assert "secret" not in caplog.text


def test_a_stream_that_does_not_come_back_is_given_up() -> None:
    def script(connection: Connection) -> None:
        if connection.number == 0:
            connection.answer()
            connection.show(islice(moving(), 3), wait=0.1)

    told: list[ImageError] = []
    with serve(script) as server, opened(server.url) as stream:
        found = list(predict(SquareEngine(), stream, on_error=told.append))
        assert server.connections == 1 + 3
    assert {len(each) for each in found} == {1}
    assert "the stream was given up (" in str(told[0])
    assert "gave up after 3 attempts to connect again); check" in str(told[0])


def test_what_cannot_be_opened_is_named_at_once_and_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with opened(f"http://me:secret@127.0.0.1:{port}/a?token=secret") as stream:
        with pytest.raises(
            ImageError, match=rf"http://127\.0\.0\.1:{port}/a: cannot be opened .*refused"
        ) as told:
            list(stream)
        assert stream.summary().endswith("opened 0 times")
    assert told.value.__cause__ is told.value.__context__ is None
    assert "secret" not in repr((stream, stream._address, told.value))


def test_the_password_reaches_the_camera() -> None:
    def script(connection: Connection) -> None:
        if not connection.authorization:
            connection.answer(status=401, WWW_Authenticate='Basic realm="camera"')
            return
        assert connection.authorization == "Basic bWU6c2VAY3JldA=="  # me:se@cret
        endless(connection)

    with (
        serve(script) as server,
        opened(server.url.replace("//", "//me:se%40cret@"), max_frames=2) as stream,
    ):
        assert len(list(stream)) == 2


def test_a_silent_stream_is_opened_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "TIMEOUT", 1.0)

    def script(connection: Connection) -> None:
        connection.answer()
        connection.show(islice(moving(), 2), wait=0.1)
        connection.wait(60)

    with serve(script) as server, opened(server.url, max_frames=3) as stream:
        assert len(list(stream)) == 3
    assert "no data for 1 s; connecting again" in caplog.text


def test_it_ends_when_it_is_asked_to_or_the_time_is_over() -> None:
    def silent(connection: Connection) -> None:
        connection.answer()
        connection.wait(60)

    begin = time.monotonic()
    with serve(silent) as server:
        with opened(server.url) as stream:
            stream.stopped = lambda: True
            assert not list(stream)
        message = rf"{server.url}: no frame was received in 0.3 s; check"
        with opened(server.url, duration=0.3) as stream, pytest.raises(ImageError, match=message):
            list(stream)
        with opened(server.url, duration=0) as stream:
            assert not list(stream)
    assert time.monotonic() - begin < 5  # the timeout for data is 10 s


def test_the_duration_is_that_of_the_processing() -> None:
    with serve(endless) as server, opened(server.url, duration=0.2) as stream:
        time.sleep(0.25)  # as long as a model takes to be prepared
        assert list(stream)
        assert not list(stream)


def hostile(kind: str, other: str) -> Iterator[tuple[str, bytes]]:
    """Yield the type and the content of an answer that names another server, or is no stream."""
    if kind == "playlist":
        yield (
            "application/vnd.apple.mpegurl",
            f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n".encode(),
        )
    if kind == "concat":
        yield "text/plain", f"ffconcat version 1.0\nfile {other}\n".encode()
    if kind == "sdp":
        yield "application/sdp", b"v=0\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nm=video 9 RTP/AVP 33\r\n"
    if kind == "garbage":
        yield "video/mp2t", np.random.default_rng(0).bytes(6_000_000)
    if kind == "empty":
        yield "video/mp2t", b""


@pytest.mark.parametrize("kind", ["playlist", "concat", "sdp", "garbage", "empty"])
def test_what_is_no_stream_is_refused_and_no_other_server_is_asked(kind: str) -> None:
    with serve(endless) as other:

        def script(connection: Connection) -> None:
            for content_type, content in hostile(kind, other.url):
                connection.answer(content_type)
                connection.send(content)

        with serve(script) as server, opened(server.url) as stream:
            with pytest.raises(
                ImageError, match=r"cannot be opened as a stream .* flv,matroska,mpegts,mpjpeg"
            ):
                list(stream)
            assert server.connections == 1
        assert other.connections == 0


def test_redirects_are_not_followed() -> None:
    with serve(endless) as other:

        def script(connection: Connection) -> None:
            connection.answer(status=302, Location=other.url)

        with serve(script) as server, opened(server.url) as stream, pytest.raises(ImageError):
            list(stream)
        assert (server.connections, other.connections) == (1, 0)


def test_pictures_that_are_too_large_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_PIXELS", 100)
    monkeypatch.setattr(reader, "TIMEOUT", 1.0)
    with serve(endless) as server, opened(server.url) as stream:
        with pytest.raises(
            ImageError, match=r"cannot be opened as a stream .no frame could be decoded for 1 s"
        ):
            list(stream)
        assert "0 of 0 frames" in stream.summary()


def test_the_size_may_change() -> None:
    def script(connection: Connection) -> None:
        connection.answer()
        connection.show(cycle([picture(10, None), picture(10, None)[:, :80]]), wait=0.1)

    with serve(script) as server, opened(server.url) as stream:
        sizes = set()
        for found in predict(SquareEngine(), stream):
            assert found.names == ["red"]
            assert found.boxes_xyxy[0].tolist() == pytest.approx([10, 12, 30, 32], abs=1)
            sizes.add(found.size)
            if len(sizes) == 2:
                break
    assert sizes == {(48, 160), (48, 80)}


@pytest.mark.parametrize("codec", ["mpeg2video", "libx264"])
def test_mpeg_ts_over_http(codec: str) -> None:
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"FFmpeg has no {codec}")
    content = transport_stream(islice(moving(), 50), codec)

    def script(connection: Connection) -> None:
        connection.answer("video/mp2t")
        connection.send(content)
        connection.wait(60)

    with serve(script) as server, opened(server.url, max_frames=1) as stream:
        (found,) = predict(SquareEngine(), stream)
    assert found.names == ["red"]


def test_rtsp() -> None:
    camera = RtspCamera(transport_stream(islice(moving(), 50)))
    with opened(camera.url, max_frames=1) as stream:
        (found,) = predict(SquareEngine(), stream)
    camera.close()
    assert found.names == ["red"]
    assert found.source.startswith(f"{camera.url}#")
    assert camera.requests[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]


def test_objects_are_tracked_though_frames_are_dropped() -> None:
    def script(connection: Connection) -> None:
        connection.answer()
        connection.show((picture(number // 2, 130) for number in range(260)), wait=0.03)

    with serve(script) as server, opened(server.url, max_frames=10) as stream:
        found = []
        for each in predict(SquareEngine(), stream, track="bytetrack"):
            found.append(dict(zip(each.names, each.tracks(), strict=True)))
            time.sleep(0.05)
    assert found[0] == {"red": 0, "blue": 0}
    assert all(each == found[2] for each in found[2:])
    assert sorted(found[2].values()) == [1, 2]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_the_certificate_of_https_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=a -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serve(endless, tls) as server:
        with opened(server.url) as stream, pytest.raises(ImageError, match="cannot be opened"):
            list(stream)
        assert server.connections == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with opened(server.url, max_frames=2) as stream:
            assert len(list(stream)) == 2


def test_nothing_is_connected_to_unasked() -> None:
    with serve(endless) as server:
        with pytest.raises(
            ConfigError,
            match="is on the network, and querybox connects to nothing without permission; allow it with",
        ):
            LiveStream(server.url)
        for source in (server.url, [server.url]):
            with pytest.raises(
                ConfigError, match=r"is a live source, which has no end; open it with querybox\.Live"
            ):
                find_sources(source)
        assert server.connections == 0
    with pytest.raises(ConfigError, match="is not open"):
        next(iter(LiveStream("http://a/b", allow_network=True)))


@pytest.mark.skipif(
    sys.platform != "linux" or Path("/dev/video63").exists(), reason="needs Linux without this camera"
)
def test_a_camera_that_is_not_there_is_named() -> None:
    with (
        LiveStream("63") as stream,
        pytest.raises(
            ImageError, match=r"/dev/video63: cannot be opened as a camera .*No such file.* connected"
        ),
    ):
        list(stream)


@pytest.mark.parametrize("limits", [{"max_frames": 0}, {"duration": -1}])
def test_limits_are_checked(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="LiveStream got"):
        LiveStream("0", **limits)  # type: ignore[arg-type]


def test_a_reader_that_fails_does_not_leave_its_consumer_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: reader.Reader) -> str:
        raise RuntimeError

    shown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    monkeypatch.setattr(reader.Reader, "_read", fail)
    with opened("http://127.0.0.1:9/") as stream:
        with pytest.raises(ImageError, match="its reader failed"):
            list(stream)
        assert stream._reader is not None
        stream._reader.join()
    assert len(shown) == 1
