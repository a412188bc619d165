"""Counts how often each part was begun, in an actor of Ray that outlives the processes that predict parts.

So a part that crashes every process is told from one whose process was killed.
"""

from __future__ import annotations

from collections import Counter

MAX_ATTEMPTS = 3
"""Maximum number of times that a part is begun: a damaged image may crash a decoder, or need too much memory."""


class Attempts:
    """Counts how many times each part has been begun."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Return how many times a part has been begun, this time included."""
        self.begun[number] += 1
        return self.begun[number]
