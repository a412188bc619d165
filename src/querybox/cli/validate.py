"""``querybox validate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from querybox.cli.progress import progress_bar
from querybox.cli.streams import print_json, print_text
from querybox.files import require_own
from querybox.text import counted

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from querybox.data.validate import SplitReport

UNUSABLE = 1
"""Exit code if the data cannot be used."""
COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
MAX_PLACES = 3
"""Number of places shown per kind of finding."""


def validate(
    data: str,
    /,
    *,
    split: str | None = None,
    max_corrupt: float = 0.05,
    allow_network: bool = False,
    json: bool = False,
    report: Path | None = None,
) -> int:
    """Check a dataset, every annotation and every image, and report all problems.

    No file is changed. Training performs the same checks before its first step: errors prevent it from starting, images
    that cannot be read are excluded, invalid boxes are dropped or clipped to their image. Exit code 0: the data can be
    used; 1: there are errors; 2: there is no such dataset.

    ```
    querybox validate photos/                         # all splits, as a table
    querybox validate photos/ --split train --json    # machine-readable
    querybox validate photos/ --report problems.html  # a page with pictures of the problems
    querybox validate 's3://bucket/train-*.tar' --allow-network   # shards in a storage
    ```

    Args:
        data: A dataset: COCO, Pascal VOC, YOLO or the format of an annotation tool; or the URL of shards.
        split: Split of the dataset, such as val; all of them by default.
        max_corrupt: Fraction of a split's images (0-1) that may be unreadable.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
        json: Print JSON instead of a table, with all places of every finding.
        report: HTML file to write, with pictures.
    """
    from querybox.data.validate import validate as run
    from querybox.terminal import Console

    if report is not None:
        require_own(report)
    with progress_bar(None, "Checking images") as advance:
        result = run(data, split, max_corrupt=max_corrupt, allow_network=allow_network, callback=advance)
    if report is not None:
        from querybox.report.validation import write_validation

        write_validation(report, result)
    if json:
        print_json(result.to_json(), indent=2)
    else:
        Console().print(*(findings_table(name, one) for name, one in result.splits.items()), sep="\n")
        print_text(f"{result.source} {result.verdict()}")
    return 0 if result.usable else UNUSABLE


def findings_table(name: str, split: SplitReport) -> Table | Text:
    """Show the findings in a split, with the first places of each."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from querybox.data.findings import KINDS

    excluded = f", {split.excluded} excluded" if split.excluded else ""
    title = f"{name}: {counted(split.images, 'image')}{excluded}, {counted(split.objects, 'object')}"
    if not split.findings:
        return Text(f"{title}: no problems found")
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("problem, and how it is handled", overflow="fold")
    for finding in split.findings:
        kind = KINDS[finding.kind]
        places = "".join(f"\n- {escape(place.what)}" for place in finding.places[:MAX_PLACES])
        more = len(finding.places) - MAX_PLACES
        rest = f"\n- {counted(more, 'more place')}" if more > 0 else ""
        table.add_row(
            f"[{COLOURS[kind.severity]}]{kind.severity}[/]",
            str(finding.count),
            f"{kind.meaning}: {kind.cure}[dim]{places}{rest}[/]",
        )
    return table
