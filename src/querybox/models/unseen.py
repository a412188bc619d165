"""What users are told about settings that tensors do not show."""

from __future__ import annotations

from typing import NamedTuple

DOUBT = ", although its name says "
"""Part of assumptions that are probably wrong."""


class Unseen(NamedTuple):
    """A setting that tensors do not show."""

    assumed: str
    """What is assumed if the setting is not stated; ``{}`` is the default."""
    other: str = ""
    """Name of models with another value."""
    cure: str = ""
    """How to state it."""
    note: str = ""
    """What has to be set in another system for a value, ``{}``, that is not the default; empty if nothing."""

    def assumption(self, default: object, path: str) -> str:
        """Return the assumption for the checkpoint at `path`, with a doubt if its name is that of other models."""
        doubt = f"{DOUBT}{self.other}" if self.other and self.other.lower() in path.lower() else ""
        return "; ".join(part for part in (f"{self.assumed.format(default)}{doubt}", self.cure) if part)
