"""Who may ask: holders of the token, or this machine and the server's own page."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Client, picture, serving

from querybox.errors import ConfigError
from querybox.inference.optimized import OptimizedDetector
from querybox.serving.access import Access, read_token
from querybox.serving.address import bind, url_of
from querybox.serving.headers import HEADERS

TOKEN = "0123456789abcdef-token"
OPEN = ("/", "/docs", "/openapi.json", "/health", "/ready")


@pytest.fixture(scope="module")
def guarded(engine: OptimizedDetector) -> Iterator[Client]:
    access = Access(token=TOKEN, host="127.0.0.1", loopback=True)
    with serving([engine], access) as client:
        yield client


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \xe9"},
    ],
)
def test_a_wrong_token_is_refused(guarded: Client, given: dict[str, str]) -> None:
    for answer in (guarded.predict(picture(), **given), guarded.request("/metrics", headers=given)):
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert TOKEN not in answer.body.decode()


def test_the_token_opens(guarded: Client) -> None:
    for scheme in ("Bearer", "bearer"):
        assert guarded.predict(picture(), Authorization=f"{scheme} {TOKEN}").status == 200
    assert guarded.request("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
    assert guarded.predict(picture(), Authorization=f"Bearer {TOKEN}", Host="models.example").status == 200


@pytest.mark.parametrize("path", OPEN)
def test_some_routes_need_no_token_and_tell_nothing_about_the_model(guarded: Client, path: str) -> None:
    answer = guarded.request(path)
    assert answer.status == 200
    assert b"dog" not in answer.body
    assert HEADERS.keys() == {name for name in HEADERS if name.lower() in answer.headers}


def test_a_token_has_no_detours(guarded: Client) -> None:
    for path in ("/metrics/", "//metrics", "/./metrics", "/metrics%2f", "/METRICS", "/health/../metrics"):
        assert guarded.request(path).status in (401, 404)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "10.0.0.1"]
)
def test_without_a_token_other_names_of_this_machine_are_refused(client: Client, host: str) -> None:
    assert client.request("/ready", headers={"Host": host}).status == 403
    assert client.predict(picture(), Host=host).status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_without_a_token_this_machine_may_ask(client: Client, host: str) -> None:
    assert client.request("/ready", headers={"Host": host}).status == 200


def test_without_a_token_pages_of_other_servers_are_refused(client: Client) -> None:
    own = f"http://127.0.0.1:{client.port}"
    assert client.predict(picture(), Origin=own).status == 200
    for origin in (
        "https://evil.example",
        "null",
        "http://[",
        "http://127.0.0.1:1",
        f"http://localhost:{client.port}",
    ):
        assert client.predict(picture(), Origin=origin).status == 403


def test_errors_have_the_headers_of_every_answer(client: Client) -> None:
    for answer in (
        client.request("/absent"),
        client.predict(b"x"),
        client.request("/ready", headers={"Host": "x"}),
    ):
        assert answer.headers["content-type"] == "application/problem+json"
        assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/openapi.json"])
def test_head_is_answered_as_get_without_the_body(client: Client, path: str) -> None:
    answer, whole = client.request(path, method="HEAD"), client.request(path)
    assert (answer.status, answer.body) == (200, b"")
    assert {**answer.headers, "date": ""} == {**whole.headers, "date": ""}
    assert client.request("/predict", method="HEAD").headers["allow"] == "POST"


def test_there_are_no_redirects(client: Client) -> None:
    """Behind a proxy with TLS they would lead to http, or to the host that the client names."""
    assert client.request("/health/").status == 404


def test_other_machines_need_a_token() -> None:
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 can be reached by other machines"):
        bind("0.0.0.0", 0, anonymous=False)
    bound, loopback = bind("0.0.0.0", 0, anonymous=True)
    bound.close()
    assert not loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none(host: str) -> None:
    try:
        bound, loopback = bind(host, 0, anonymous=False)
    except ConfigError:
        pytest.skip(f"this machine has no {host}")
    with bound:
        assert loopback
        assert url_of(bound).startswith(
            "http://[::1]:" if bound.family == socket.AF_INET6 else "http://127.0.0.1:"
        )


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no such name", 0), (".", 0), ("a" * 64, 0)])
def test_an_address_that_cannot_be_listened_at_is_told(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen at --host {host} --port {port} "):
        bind(host, port, anonymous=True)


@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
def test_a_port_out_of_its_range_is_told(port: int) -> None:
    with pytest.raises(ConfigError, match=f"serve got port={port}; expected an integer, 0 to 65535"):
        bind("127.0.0.1", port, anonymous=False)


def test_a_port_in_use_is_told() -> None:
    first, _ = bind("127.0.0.1", 0, anonymous=False)
    with first:
        first.listen()
        with pytest.raises(ConfigError, match="choose another --port"):
            bind("127.0.0.1", first.getsockname()[1], anonymous=False)


def test_tokens_are_read_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(None, file) == TOKEN
    assert read_token(TOKEN, None) == TOKEN
    assert read_token(None, None) is None
    with pytest.raises(ConfigError, match="expected one of"):
        read_token(TOKEN, file)
    with pytest.raises(ConfigError, match="cannot be read as a token"):
        read_token(None, tmp_path / "absent")
    with pytest.raises(ConfigError, match="is a folder; expected a regular file"):
        read_token(None, tmp_path)


@pytest.mark.parametrize(
    "token", ["", "short", "with spaces in it 012345", "not-ascii-é-0123456789", "line\n0123456789abcdef"]
)
def test_weak_tokens_are_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigError, match="expected at least 16 printable") as error:
        read_token(token, None)
    assert not token or token not in str(error.value)
