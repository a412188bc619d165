"""A counter that tells a part that ends every process from one whose process was killed; it is a process of Ray."""

from __future__ import annotations

from collections import Counter

MAX_ATTEMPTS = 3
"""How many times a part is begun: a damaged image may crash a decoder, or need more memory than there is."""


class Attempts:
    """Counts how many times each part has been begun."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Return how many times a part has been begun, this time included."""
        self.begun[number] += 1
        return self.begun[number]
