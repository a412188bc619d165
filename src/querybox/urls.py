"""URLs, and what of them may be shown: no user name, no password, and no secret in the query."""

from __future__ import annotations

import re

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}://\S*")
USER_INFO = re.compile(r"://(?:[^/?#]*|[^/?#@]*:[^@]*[/?#].*)@")
"""User name and password; also one with a slash, ``?`` or ``#``, by which it seems to be a host, a path or a query."""
CONTAINER = re.compile(r"(?:az|abfss?)://[^/?#:@]+@", re.IGNORECASE)
"""The storages of Azure have the name of a container in the place of the user name."""
PARAMETER = re.compile(r"(?<=[?&#])([^=&#?]*)=([^&#]*)")
"""Name and value in a query or fragment."""
PUNCTUATION = ":;,.)]'\""
"""Punctuation of a message that may directly follow a URL."""
SECRET = re.compile(
    r"access|api|auth|code|cred|hash|hmac|jwt|key|login|md5|pas|policy|pwd|sas|secret|session|sig|ticket|token|user",
    re.IGNORECASE,
)
"""Parts of names of parameters whose values are hidden."""
HIDDEN = "***"
CURE = "percent-encode the user name and the password (%40 for @, %2F for /), and check the port"
"""What to do about a malformed URL, of which nothing else may be shown."""


def is_url(place: str) -> bool:
    """Return whether a place is a URL rather than a path; ``C://`` is a drive."""
    return len(place.partition("://")[0]) > 1 and "://" in place


def public_name(place: str) -> str:
    """Return the name under which a path or URL is shown and stored: a URL without credentials, a path as it is.

    User name and password are removed, and the values of those parameters replaced with ``***`` whose names contain a
    word such as ``token``, ``key`` or ``sig``, as in signed URLs. All else remains, so that the name still tells one
    file of a storage from another.
    """
    return hide(place) if is_url(place) else place


def without_credentials(text: str) -> str:
    """Return a text with the URLs in it as by `public_name`."""
    return URL.sub(lambda found: hide(found[0]), text) if "://" in text else text


def has_misplaced_password(url: str) -> bool:
    """Return whether an ``@`` in the path or query may be that of a password with a slash, ``?`` or ``#``."""
    return bool(re.search("://[^/?#@]*:[^@]*[/?#].*@", url))


def hide(url: str) -> str:
    """Return a URL without credentials."""
    if "@" in url and not CONTAINER.match(url):
        url = USER_INFO.sub("://", url)
    return PARAMETER.sub(hide_value, url)


def hide_value(parameter: re.Match[str]) -> str:
    """Return a parameter, with its value hidden if it may be secret."""
    name, value = parameter.groups()
    if not SECRET.search(name):
        return parameter[0]
    return f"{name}={HIDDEN}{value[len(value.rstrip(PUNCTUATION)) :]}"
