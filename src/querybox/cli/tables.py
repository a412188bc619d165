"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def table(
    title: str,
    heads: Sequence[str],
    *sections: Iterable[Sequence[str]],
    numeric: Collection[int] = (),
) -> Table:
    """Return a table of plain text: markup in it is shown as it is.

    Args:
        title: Above the table; may be empty.
        heads: Headings of the columns.
        sections: Rows, with a line between sections.
        numeric: Indices of the columns that are aligned to the right.
    """
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="table.title") if title else None
    shown = Table(title=heading, title_justify="left", show_header=any(heads))
    for index, head in enumerate(heads):
        shown.add_column(Text(head), justify="right" if index in numeric else "left")
    for rows in sections:
        for row in rows:
            shown.add_row(*map(Text, row))
        shown.add_section()
    return shown
