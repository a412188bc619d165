"""The findings of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Area = Literal["data", "schedule", "matching", "classification", "boxes"]

HEADS = ("cause", "evidence", "cure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A likely cause of a low AP."""

    name: str
    """Identifier of the cause, such as ``"lr_too_high"``."""
    area: Area
    """The part of training that the cause concerns."""
    explains: float
    """Rough estimate of the fraction of the missing AP that it explains, 0-1, by which findings are sorted."""
    cause: str
    """The cause in a sentence."""
    evidence: Mapping[str, float]
    """The numbers of the record that indicate it, by description."""
    cure: str
    """The settings or data to change."""

    def row(self) -> list[str]:
        """Return the cells of a table row with the columns `HEADS`."""
        evidence = "; ".join(f"{name}: {number(value)}" for name, value in self.evidence.items())
        return [f"{self.cause} ({self.area})", evidence, self.cure]


def alternatives(*options: str) -> str:
    """Join the options that are not empty: ``"a, b or c"``."""
    *first, last = [option for option in options if option]
    return f"{', '.join(first)} or {last}" if first else last


def number(value: float) -> str:
    """Format a number: integers below 1e9 in full, others with three significant digits."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.3g}"
