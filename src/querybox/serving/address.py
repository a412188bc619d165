"""The address that a server listens at."""

from __future__ import annotations

import ipaddress
import os
import socket

from querybox.arguments import require_number
from querybox.errors import ConfigError


def bind(host: str, port: int, *, anonymous: bool) -> tuple[socket.socket, bool]:
    """Return a socket with an address, which does not listen yet, and whether only this machine can reach it.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 for any that is free.
        anonymous: Whether other machines may ask without a token, so that any address is allowed.

    Raises:
        ConfigError: The port is out of its range; the address is not one of this machine, or in use; or other machines
            can reach it and `anonymous` is False.
    """
    require_number("serve", "port", port, 0, 65_535, whole=True)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        loopback = ipaddress.ip_address(address[0]).is_loopback
        if not (loopback or anonymous):
            raise ConfigError(
                f"--host {host} can be reached by other machines, and there is no token; expected --token-file or "
                "QUERYBOX_TOKEN, or else --allow-anonymous"
            )
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # elsewhere it would allow two servers at one port
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter of a name with labels that are empty or too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot listen at --host {host} --port {port} ({reason}); expected an address of this "
            "machine and a free port: choose another --port"
        ) from None
    return found, loopback


def url_of(bound: socket.socket) -> str:
    """Return the URL of a server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
