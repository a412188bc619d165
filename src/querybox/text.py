"""Text for people."""

from __future__ import annotations

from collections.abc import Sequence


def listed(items: Sequence[object], limit: int = 10, separator: str = ", ") -> str:
    """Say `items` in one line, the first `limit` of them by name."""
    text = separator.join(str(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"
