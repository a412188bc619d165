"""``querybox validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from querybox.data.validate import SplitReport

UNUSABLE = 1
"""Exit code where the data cannot be used as they are."""
COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
SHOWN = 3
"""Places of a kind."""


def validate(
    data: Path,
    /,
    *,
    split: str | None = None,
    max_corrupt: float = 0.05,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    report: Path | None = None,
) -> int:
    """Look at a whole dataset, every annotation and every image, and say all that is wrong with it.

    Nothing is changed. Training looks in the same way before its first step: errors keep it from starting, images that
    cannot be read are left out, faulty boxes are dropped or cut to their image. Exit code 0: the data can be used; 1:
    they cannot, there are errors; 2: there is no such dataset.

    ```
    querybox validate photos/                       # all splits, as a table
    querybox validate photos/ --split train --json  # for programs
    querybox validate photos/ --report faults.html  # a page with pictures of what is wrong
    ```

    Args:
        data: A dataset: COCO, Pascal VOC or YOLO, recognised from the path.
        split: Which split of the dataset, such as val; all of them where it is left out.
        max_corrupt: Share of a split's images (0-1) that may be unreadable.
        as_json: Print JSON instead of a table: every finding with all of its places.
        report: An HTML file to be written, with pictures.
    """
    from rich.console import Console

    from querybox.cli.progress import progress_bar
    from querybox.data.validate import validate as examine

    with progress_bar(None, "Looking at images") as advance:
        found = examine(data, split, max_corrupt=max_corrupt, callback=advance)
    if report is not None:
        from querybox.report.validation import write_validation

        write_validation(report, found)
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        console = Console()
        console.print(*(findings_table(name, one) for name, one in found.splits.items()))
        verdict = "can be used" if found.usable else "cannot be used: there are errors"
        console.print(f"{data} {verdict}", markup=False, highlight=False, soft_wrap=True)
    return 0 if found.usable else UNUSABLE


def findings_table(name: str, split: SplitReport) -> Table | Text:
    """Show what was found in a split, the first places of each kind."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from querybox.data.findings import KINDS

    left_out = f", {split.excluded} left out" if split.excluded else ""
    title = f"{name}: {split.images} images{left_out}, {split.objects} objects"
    if not split.findings:
        return Text(f"{title}: nothing is wrong")
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("what, and what becomes of it", overflow="fold")
    for found in split.findings:
        kind = KINDS[found.kind]
        places = "".join(f"\n- {escape(place.what)}" for place in found.places[:SHOWN])
        more = len(found.places) - SHOWN
        table.add_row(
            f"[{COLOURS[kind.severity]}]{kind.severity}[/]",
            str(found.count),
            f"{kind.meaning}: {kind.cure}[dim]{places}{f'{chr(10)}- {more} more places' if more > 0 else ''}[/]",
        )
    return table
