"""Sizes of images on the command line."""

from __future__ import annotations

import re

from querybox.errors import ConfigError


def parse_size(text: str) -> tuple[int, int]:
    """Parse a size such as ``"480x640"``.

    Raises:
        ConfigError: The text has another form.
    """
    if not (sides := re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)):
        raise ConfigError(f"--size got '{text}'; expected height x width in pixels, such as 480x640")
    return int(sides[1]), int(sides[2])
