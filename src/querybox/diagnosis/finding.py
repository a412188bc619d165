"""What a diagnosis finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Area = Literal["data", "schedule", "matching", "classification", "boxes"]

HEADS = ("cause", "evidence", "cure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One cause of a low AP."""

    name: str
    """Of the cause, such as ``"lr_too_high"``."""
    area: Area
    """What is at fault."""
    explains: float
    """How much of the AP that is missing it may explain, 0-1: a rough estimate, by which causes are ordered."""
    cause: str
    """What is wrong, in a sentence."""
    evidence: Mapping[str, float]
    """The numbers of the record that say so, by what they are."""
    cure: str
    """What to set or to do."""

    def row(self) -> list[str]:
        """Return the finding as the texts of a table whose columns are `HEADS`."""
        evidence = "; ".join(f"{name}: {number(value)}" for name, value in self.evidence.items())
        return [f"{self.cause} ({self.area})", evidence, self.cure]


def number(value: float) -> str:
    """Write a number of the evidence: whole ones as they are, others with three digits."""
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"
