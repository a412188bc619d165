"""Durations such as ``30m``, ``1h30m`` or ``90s``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
PATTERN = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def parse_duration(value: Any) -> Any:
    """Convert text such as ``"1h30m"`` to seconds; other values are returned unchanged, for pydantic to validate.

    Raises:
        ValueError: The text is not a duration.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if not PATTERN.fullmatch(text):
        raise ValueError("expected a duration such as '90s', '30m' or '1h30m'")
    return sum(float(part[:-1]) * SECONDS[part[-1]] for part in re.findall(r"[\d.]+[dhms]", text))


def format_duration(seconds: float) -> str:
    """Format a duration with at most two units, such as ``1h05m`` or ``42s``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""A positive duration in seconds, given as a number or as text such as ``1h30m``."""
