"""A console on which text from files cannot move the cursor, change colours, or hide other text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from querybox.text import printable


class Console(RichConsole):
    """Rich's console; control characters in text are shown as escapes, see `querybox.text.printable`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to text."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything that contains text."""
        if isinstance(renderable, Text) and (plain := printable(renderable.plain)) != renderable.plain:
            renderable = Text(plain, renderable.style, justify=renderable.justify, end=renderable.end)
        return super().render(renderable, options)
