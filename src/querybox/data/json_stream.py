"""Read a JSON object whose lists are too large to be in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def stream_members(
    text: str, lists: Container[str], others: Container[str] = ()
) -> Iterator[tuple[str, Iterator[Any]]]:
    """Yield members of an object, one after the other; each must be consumed before the next.

    Args:
        text: A JSON text.
        lists: Names of members that are lists, whose elements are yielded one after the other.
        others: Names of members that are yielded as a whole, as the only element. All others are skipped.

    Raises:
        ValueError: The text is not JSON, not an object, or has one of the lists twice or as another value.
        RecursionError: It is nested too deeply.
    """
    reader = _Reader(text)
    reader.expect("{")
    more = not reader.accept("}")
    found: set[str] = set()
    while more:
        name = reader.value()
        if not isinstance(name, str):
            raise ValueError(f"expected a name at character {reader.place}")  # noqa: TRY004 - of the text
        if name in found:
            raise ValueError(f"{name!r} occurs twice, before character {reader.place}")
        reader.expect(":")
        if name in lists:
            found.add(name)
            yield name, reader.elements()
        elif name in others:
            yield name, iter([reader.value()])
        else:
            reader.value()
        more = reader.accept(",")
        if not more:
            reader.expect("}")
    if reader.place < len(text):
        raise ValueError(f"extra data at character {reader.place}")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = self._after_space(0)

    def _after_space(self, place: int) -> int:
        matched = _SPACE.match(self.text, place)
        assert matched is not None
        return matched.end()

    def accept(self, char: str) -> bool:
        """Skip `char` and return whether it is next."""
        if not self.text.startswith(char, self.place):
            return False
        self.place = self._after_space(self.place + 1)
        return True

    def expect(self, char: str) -> None:
        if not self.accept(char):
            raise ValueError(f"expected {char!r} at character {self.place}")

    def value(self) -> Any:
        value, end = _DECODER.raw_decode(self.text, self.place)
        self.place = self._after_space(end)
        return value

    def elements(self) -> Iterator[Any]:
        self.expect("[")
        more = not self.accept("]")
        while more:
            yield self.value()
            more = self.accept(",")
            if not more:
                self.expect("]")
