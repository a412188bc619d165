"""Access control: a token, or without one only requests from this machine and from the server's own page."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from querybox.errors import ConfigError
from querybox.files import require_regular
from querybox.serving.problems import ProblemError, response

OPEN = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
"""Routes that need no token: they reveal nothing about the model, and run nothing."""
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""
MIN_TOKEN = 16
"""Minimum number of characters of a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Which requests are answered."""

    token: str | None
    """Required by all routes but those in `OPEN`; None if none is required."""
    host: str
    """The address that the server listens at, as the user gave it."""
    loopback: bool
    """Whether the address can be reached from this machine only."""

    def problem(self, path: str, headers: Headers) -> ProblemError | None:
        """Return why a request is refused; None if it is not."""
        if self.token is not None:
            return None if path in OPEN or self._has_token(headers) else _unauthorized()
        host = headers.get("host", "")
        if self.loopback and _hostname(host) not in LOCAL | {self.host.lower()}:
            # A web page can let its own host name resolve to this machine (DNS rebinding).
            return ProblemError(
                403,
                "this server answers only requests to localhost, 127.0.0.1 and ::1; to use another name, start it "
                "with a token",
            )
        if (origin := headers.get("origin")) is not None and origin.partition("://")[2] != host:
            return ProblemError(
                403, "this server answers no requests from web pages of other servers; start it with a token"
            )
        return None

    def _has_token(self, headers: Headers) -> bool:
        assert self.token is not None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())


class Guarded:
    """ASGI middleware that refuses requests according to an `Access`."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        problem = (
            self.access.problem(scope["path"], Headers(scope=scope)) if scope["type"] == "http" else None
        )
        await (self.app if problem is None else response(problem))(scope, receive, send)


def _unauthorized() -> ProblemError:
    return ProblemError(
        401,
        "expected the header 'Authorization: Bearer TOKEN' with the token of the server",
        {"WWW-Authenticate": "Bearer"},
    )


def _hostname(host: str) -> str | None:
    """Return the name in a Host header, without the port; None if there is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def read_token(given: str | None, file: Path | None) -> str | None:
    """Return the token of a server; None for no token.

    Args:
        given: The token itself.
        file: A file that contains nothing else.

    Raises:
        ConfigError: Both are given, the file cannot be read, or the token is short or cannot be sent in a header.
    """
    if given is not None and file is not None:
        raise ConfigError(
            "serve got a token and a file with a token; expected one of --token (or QUERYBOX_TOKEN) and --token-file"
        )
    if file is not None:
        require_regular(file, ConfigError)
        try:
            given = file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{file}: cannot be read as a token ({error}); expected a file with one line of ASCII"
            ) from None
    if given is not None and not (
        len(given) >= MIN_TOKEN and given.isascii() and given.isprintable() and " " not in given
    ):
        raise ConfigError(
            f"serve got a token of {len(given)} characters; expected at least {MIN_TOKEN} printable ASCII characters "
            "without spaces, as of: openssl rand -hex 32"
        )
    return given
