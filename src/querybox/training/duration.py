"""Lengths of time as people write them: ``30m``, ``1h30m``, ``90s``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
PATTERN = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def parse_duration(value: Any) -> Any:
    """Turn ``"1h30m"`` into seconds; other values pass, for pydantic to judge.

    Raises:
        ValueError: The text is not a duration.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if not PATTERN.fullmatch(text):
        raise ValueError("expected a length of time such as '90s', '30m' or '1h30m'")
    return sum(float(part[:-1]) * SECONDS[part[-1]] for part in re.findall(r"[\d.]+[dhms]", text))


def format_duration(seconds: float) -> str:
    """Return a length of time with two units at most, such as ``1h05m`` or ``42s``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
"""Seconds, more than 0; written as a number or as ``1h30m``."""
