"""Formatting of messages."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[object], limit: int = 10, separator: str = ", ") -> str:
    """Return the first `limit` items in one line, and the number of the others."""
    text = separator.join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
