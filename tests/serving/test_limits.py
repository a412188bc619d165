"""Requests that are too many, too large or too slow are refused by name, and nothing of them stays."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from unittest import mock

import pytest
from PIL import Image
from servers import BOUNDARY, SECONDS, Client, GatedEngine, Reply, form, picture, serving

from querybox.errors import ConfigError
from querybox.inference.optimized import OptimizedDetector
from querybox.serving.metrics import Metrics
from querybox.serving.settings import ServingSettings
from querybox.serving.workers import Workers

Begin = Callable[[Callable[[], Reply]], Callable[[], Reply]]
KIND = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def test_a_full_queue_refuses(gated: GatedEngine, at_once: Begin) -> None:
    with serving([gated], queue=3) as client:
        gated.gate.clear()
        asked = [at_once(partial(client.predict, picture(seed=seed))) for seed in range(2)]
        client.wait_for("querybox_images_in_progress", 2)
        two = client.predict(picture(), picture())  # of which one would fit
        assert (two.status, two.headers["retry-after"]) == (503, "1")
        assert client.request("/ready").status == 200
        asked.append(at_once(partial(client.predict, picture())))
        client.wait_for("querybox_images_in_progress", 3)
        refused = client.predict(picture())
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "3 images are in progress and at most 3 are accepted" in refused.json["detail"]
        assert client.request("/ready").status == 503
        assert client.request("/health").status == 200
        gated.gate.set()
        assert [answer().status for answer in asked] == [200, 200, 200]
        assert client.request("/ready").status == 200
        assert client.metric('querybox_requests_total{status="503"}') == 2
        assert client.metric('querybox_requests_total{status="200"}') == 3
        assert client.metric("querybox_images_in_progress") == 0


def test_an_answer_that_takes_too_long_is_given_up(gated: GatedEngine) -> None:
    with serving([gated], timeout=0.3) as client:
        gated.gate.clear()
        for _ in range(2):
            answer = client.predict(picture())
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "not ready within 0.3 s" in answer.json["detail"]
        assert client.metric("querybox_images_in_progress") == 0
        gated.gate.set()
        end = time.monotonic() + SECONDS
        while client.predict(picture()).status != 200:
            assert time.monotonic() < end


def test_what_nobody_waits_for_is_not_computed(gated: GatedEngine) -> None:
    with serving([gated]) as client:
        gated.gate.clear()
        gated.sizes.clear()
        sockets = [client.connect() for _ in range(3)]
        for each in sockets:
            body = form([picture()])
            each.sendall(
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
                b"boundary=boundary\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
        client.wait_for("querybox_images_in_progress", 3)
        end = time.monotonic() + SECONDS
        while not gated.sizes:
            assert time.monotonic() < end
        for each in sockets:
            each.close()
        client.wait_for("querybox_images_in_progress", 0)
        assert client.metric('querybox_requests_total{status="499"}') == 3
        gated.gate.set()
        assert client.predict(picture()).status == 200
    assert gated.sizes == [1, 1]  # that which was begun, and the last


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(client: Client, chunked: bool) -> None:
    body = form([bytes(2**16)])
    chunks = (body[start : start + 4096] for start in range(0, len(body), 4096))
    answer = client.request("/predict", chunks if chunked else body, KIND)
    assert answer.status == 413
    assert "more than 65,536 bytes" in answer.json["detail"]


def test_a_body_is_refused_by_its_length_before_it_is_sent(client: Client) -> None:
    with client.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_image_with_too_many_pixels_is_refused(client: Client) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert len(file.getvalue()) < 2**16
    answer = client.predict(picture(), file.getvalue())
    assert answer.status == 422
    assert answer.json["detail"].startswith("images[1]: has too many pixels")
    answer = client.predict(picture(100, 101))
    assert answer.json["detail"] == (
        "images[0]: 100x101 is 10,100 pixels; expected at most 10,000: make it smaller"
    )
    assert client.predict(picture(100, 100)).status == 200


def test_too_many_files_are_refused(client: Client) -> None:
    assert client.predict(*[picture(4, 4)] * 16).status == 200
    answer = client.predict(*[picture(4, 4)] * 17)
    assert answer.status == 400
    assert "at most 16" in answer.json["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", KIND["Content-Type"], 400),
        (b"nonsense", KIND["Content-Type"], 400),
        (form([]), KIND["Content-Type"], 422),
        (form([b""]), KIND["Content-Type"], 422),
        (form([picture()])[:-20], KIND["Content-Type"], 400),
        (form([picture(), picture()])[:-20], KIND["Content-Type"], 400),
        (form([picture()]), "multipart/form-data", 400),
        (form([picture()]), "multipart/form-data; boundary=other", 400),
        (form([picture()]), "multipart/mixed; boundary=boundary", 415),
        (picture(), "image/png", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"{}", "", 415),
    ],
)
def test_other_bodies_are_refused(client: Client, body: bytes, kind: str, status: int) -> None:
    answer = client.request("/predict", body, {"Content-Type": kind})
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["status"] == status


@pytest.mark.parametrize(
    "query",
    [
        "?threshold=2",
        "?threshold=nan",
        "?threshold=x",
        "?top_k=0",
        "?top_k=1.5",
        "?top_k=999999",
        "?unknown=1",
        "?thresold=1",
        "?threshold=0.5&threshold=0.5",
        "?top_k=1&threshold=0.5&top_k=2",
    ],
)
def test_parameters_out_of_their_range_are_refused(client: Client, query: str) -> None:
    answer = client.predict(picture(), query=query)
    assert answer.status == 422
    assert answer.json["detail"].startswith(f"{query[1:].partition('=')[0]}: ")


def test_a_request_that_arrives_too_slowly_is_given_up(engine: OptimizedDetector) -> None:
    def drop_by_drop() -> Iterator[bytes]:
        for byte in form([picture()])[:40]:
            yield bytes([byte])
            time.sleep(0.02)

    with serving([engine], timeout=0.3) as client:
        answer = client.request("/predict", drop_by_drop(), KIND)
        assert answer.status == 408
        assert client.metric("querybox_images_in_progress") == 0


def test_quiet_connections_are_cut(engine: OptimizedDetector) -> None:
    with mock.patch("querybox.serving.connection.IDLE_SECONDS", 0.3), serving([engine]) as client:
        beginnings = (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        connections = [client.connect() for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        for connection in connections:  # which would time out otherwise
            with connection, suppress(ConnectionResetError):
                assert connection.recv(1) == b""


def test_too_many_connections_are_refused(engine: OptimizedDetector) -> None:
    with mock.patch("querybox.serving.connection.MAX_CONNECTIONS", 3), serving([engine]) as client:
        taken = [client.connect() for _ in range(3)]
        assert client.request("/health").status == 503
        for connection in taken:
            connection.close()
        end = time.monotonic() + SECONDS
        while (answer := client.request("/health")).status != 200:
            assert time.monotonic() < end
        assert answer.json == {"status": "running"}


def test_a_long_header_is_refused(client: Client) -> None:
    with client.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nX: " + bytes(97 for _ in range(20_000)) + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("chunks", [b"nonsense\r\n", b"5\r\nabcde\r\nnonsense\r\n"])
def test_a_body_that_is_no_body_is_refused(
    client: Client, chunks: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    for kind in (
        KIND["Content-Type"],
        "text/plain",
    ):  # of which the second is answered before the body is read
        with client.connect() as connection:
            connection.sendall(head + f"Content-Type: {kind}\r\n\r\n".encode() + chunks)
            assert connection.recv(100).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 415 "))
            connection.sendall(b"nonsense" * 10)
            with suppress(ConnectionError):
                while connection.recv(1000):
                    pass
    assert client.predict(picture()).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1.1},
        {"top_k": 0},
        {"max_batch": 0},
        {"max_wait": -1},
        {"workers": 0},
        {"queue": 0},
        {"max_bytes": 10},
        {"max_pixels": 10**9},
        {"timeout": 0},
    ],
)
def test_settings_out_of_their_range_are_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ConfigError, match=f"serve got {name}="):
        ServingSettings(**settings)  # type: ignore[arg-type]


def test_a_wait_without_batches_is_refused(engine: OptimizedDetector) -> None:
    """On a CPU images are predicted one at a time by default, which the options alone do not show."""
    alone = (
        r"serve: max_wait has no effect if images are predicted one at a time.*set max_batch as well, or omit"
    )
    with pytest.raises(ConfigError, match=alone):
        Workers([engine], ServingSettings(max_wait=0.01), Metrics())
    assert Workers([engine], ServingSettings(), Metrics()).batches.max_batch == 1
    assert Workers([engine], ServingSettings(max_batch=2), Metrics()).batches.max_wait == 0.005
    assert Workers([engine], ServingSettings(max_batch=2, max_wait=0), Metrics()).batches.max_wait == 0
