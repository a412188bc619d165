"""Addresses of live sources: cameras of this machine, and network streams."""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from querybox.errors import ConfigError
from querybox.urls import CURE, public_name

CAMERA = re.compile(r"\d{1,2}|/dev/video\d{1,2}")
"""A camera by its index, or by the name of its device on Linux."""
DEVICES = {"linux": ("/dev/video", "v4l2"), "darwin": ("", "avfoundation")}
"""Beginning of the name of a camera before its index, and the input device of FFmpeg, for each platform."""
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")
"""One slash matches an address that was converted to a path, whose password must not be printed either."""
HTTP_FORMATS = "flv,matroska,mpegts,mpjpeg"
"""Formats of streams over HTTP by FFmpeg's names. Playlists (HLS, DASH) name other hosts that it would connect to."""
PROTOCOLS: Mapping[str, Mapping[str, str]] = {
    "http": {"protocol_whitelist": "http,tcp", "format_whitelist": HTTP_FORMATS, "max_redirects": "0"},
    "https": {
        "protocol_whitelist": "https,tls,tcp",
        "format_whitelist": HTTP_FORMATS,
        "max_redirects": "0",
        "tls_verify": "1",  # with the authorities of this system, see `authorities`
    },
    "rtsp": {"protocol_whitelist": "rtsp,rtp,tcp", "format_whitelist": "rtsp", "rtsp_transport": "tcp"},
}
"""Options of FFmpeg for each protocol, which restrict what it connects to and reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A live source."""

    name: str
    """The address without user name, password and query, for messages and results."""
    url: str = field(repr=False)
    """What FFmpeg opens."""
    is_network: bool
    format: str | None = None
    """FFmpeg's name of the format; None to recognise it."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of FFmpeg."""


def find_address(source: object) -> Address | None:
    """Return the address of a live source; None for paths and everything else.

    A file or folder whose name is a number is a path, not a camera.

    Raises:
        ConfigError: The protocol is not supported, the address is malformed, or this platform has no cameras by index.
    """
    if not isinstance(source, str) or not is_address(source):
        return None
    found = SCHEME.match(source)
    return stream(found[1].lower(), source) if found else camera(source)


def is_address(source: str) -> bool:
    """Return whether a source is a camera or a stream, though perhaps not one that is supported."""
    if CAMERA.fullmatch(source):
        return not (Path(source).is_file() or Path(source).is_dir())
    found = SCHEME.match(source)
    return bool(found and (found[2] or found[1].lower() in PROTOCOLS))


def camera(source: str) -> Address:
    """Return the address of a camera of this machine."""
    if sys.platform not in DEVICES:
        raise ConfigError(
            f"{source}: cameras by index are supported on Linux and macOS; expected the address of a stream, such as "
            "rtsp://HOST/PATH"
        )
    start, device = DEVICES[sys.platform]
    url = f"{start}{source}" if source.isdecimal() else source
    return Address(name=url if start else f"camera {url}", url=url, is_network=False, format=device)


def stream(scheme: str, source: str) -> Address:
    """Return the address of a network stream. The message about a malformed one contains only its protocol."""
    if scheme not in PROTOCOLS:
        raise ConfigError(
            f"{scheme}://: the protocol is not supported; expected a file, a camera such as 0, or a stream: "
            f"{', '.join(f'{known}://' for known in PROTOCOLS)}"
        )
    malformed = ConfigError(f"{scheme}://...: the address of the stream is malformed; {CURE}")
    try:
        parts = urlsplit(source)
        parts.port  # noqa: B018 - raises an error
    except ValueError:
        raise malformed from None
    # An @ after the host name may be that of a password with a slash, ? or #.
    rest = parts.path + parts.query + parts.fragment
    if not parts.hostname or "@" in rest or not source.isascii() or not source.isprintable() or " " in source:
        raise malformed
    return Address(
        name=public_name(f"{scheme}://{parts.netloc}{parts.path}"),
        url=source,
        is_network=True,
        format="rtsp" if scheme == "rtsp" else None,
        options={**PROTOCOLS[scheme], **(authorities() if scheme == "https" else {})},
    )


def authorities() -> dict[str, str]:
    """Return the option of FFmpeg for the certificates that Python trusts; FFmpeg itself may look elsewhere.

    The environment variable ``SSL_CERT_FILE`` names others.
    """
    file = ssl.get_default_verify_paths().cafile
    return {} if file is None else {"ca_file": file}
