"""Formatting of messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[object], limit: int = 10, separator: str = ", ") -> str:
    """Return the first `limit` items in one line, and the number of the others."""
    text = separator.join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number of things, such as ``1 image`` or ``1,000 images``; the plural ends in ``s`` by default."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
