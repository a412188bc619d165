"""Addresses of live sources: what is taken for one, and that none of their secrets are repeated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from querybox.errors import ConfigError
from querybox.inference.address import find_address


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://me:secret@camera:554/1", "rtsp://camera:554/1"),
        ("http://camera/a?user=me&password=secret#secret", "http://camera/a"),
        ("HTTPS://me:se@cret@[::1]:8443/a", "https://[::1]:8443/a"),
    ],
)
def test_names_have_no_credentials(source: str, name: str) -> None:
    address = find_address(source)
    assert address is not None
    assert (address.name, address.url, address.is_network) == (name, source, True)
    assert "secret" not in repr(address)


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://me:secret/@camera/1",
        "rtsp://me:12/secret@camera/1",
        "http://me:12#secret@camera/",
        "http://camera:secret/",
        "http://[::1/secret",
        "http:///secret",
        "http://camera/secret\r\nHost: a",
        "http://camera/se cret",
        "rtsp:/me:secret@camera/1",
        "udp://secret:1234",
        "file:///secret",
        "concat://secret",
        "rtmp://secret/1",
        "data://text/plain;secret",
    ],
)
def test_malformed_addresses_and_other_protocols_are_refused_without_their_text(source: str) -> None:
    with pytest.raises(
        ConfigError, match=r"malformed; percent-encode|the protocol is not supported; expected"
    ) as told:
        find_address(source)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "source", ["a.jpg", "concat:a.ts|b.ts", "C:/photos", "c:\\a.mp4", "2024", "/dev/null", "./0", 3]
)
def test_paths_are_no_addresses(source: object) -> None:
    assert find_address(source) is None


def test_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    for source in ("0", "/dev/video0"):
        address = find_address(source)
        assert address is not None
        assert (address.url, address.format, address.is_network) == ("/dev/video0", "v4l2", False)
    monkeypatch.setattr(sys, "platform", "darwin")
    address = find_address("1")
    assert address is not None
    assert (address.url, address.format, address.name) == ("1", "avfoundation", "camera 1")
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="cameras by index are supported on Linux and macOS"):
        find_address("0")
    (tmp_path / "0").mkdir()
    assert find_address("0") is None
