"""Formatting of messages and JSON, and what may be printed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from querybox.errors import QueryboxError

UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters other than tabs and newlines, among them escape
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and marks that reverse the direction of text
    "\ud800-\udfff]"  # bytes of a file name that are not UTF-8
)


def listed(items: Sequence[object], limit: int = 10, separator: str = ", ") -> str:
    """Return the first `limit` items in one line, and the number of the others."""
    text = separator.join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number of things, such as ``1 image`` or ``1,000 images``; the plural ends in ``s`` by default."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def natural_key(name: object) -> list[tuple[int, str]]:
    """Return a sort key of names or paths that puts ``2.jpg`` before ``10.jpg``."""
    parts = re.split(r"(\d+)", str(name))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def printable(text: str) -> str:
    """Return `text` with the characters that control a terminal as the escapes that they have in JSON.

    Names of classes and files may come from a stranger. JSON remains the same JSON.
    """
    return UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def or_none(value: float) -> float | None:
    """Return None for NaN, which JSON cannot represent."""
    return None if math.isnan(value) else value


def to_json(value: object, *, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Return a value as standard JSON, which has neither NaN nor infinity.

    Args:
        value: The value.
        indent: The number of spaces of each level; None for all in one line.
        ensure_ascii: Escape all characters that are not ASCII.

    Raises:
        QueryboxError: A number is NaN or infinite.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError as error:
        raise QueryboxError(
            f"a number to be written as JSON is NaN or infinite, which it cannot be ({error})"
        ) from error
