"""Sizes of the objects that a model was trained on, which its weights state."""

from __future__ import annotations

from dataclasses import dataclass

from querybox.arguments import require_number

RANGE = (0.01, 2.0**20)
"""Range of the sides in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSides:
    """Median sides of the objects that a model was trained on; a side is the square root of the area of the box."""

    original: float
    """Median side in pixels of the image files."""
    resized: float
    """Median side in pixels of the images as they are resized for the model."""

    def __post_init__(self) -> None:
        """Check the numbers, which may be those of a file from a stranger.

        Raises:
            ConfigError: One is not a number, or out of `RANGE`.
        """
        for name in ("original", "resized"):
            require_number("ObjectSides", name, getattr(self, name), *RANGE)
