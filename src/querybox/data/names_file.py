"""Files with one class name per line, such as `classes.txt`: the number of a class is that of its line, from 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from querybox.data.findings import FindingCollector
from querybox.data.text import read_lines
from querybox.text import listed


def read_names(file: Path, findings: FindingCollector) -> dict[int, str]:
    """Return the class names in a file by class number.

    An empty line is a class without a name, so that the numbers of the others are those of their lines, except for
    empty lines at the end.

    Raises:
        DataError: The file cannot be read or is not text.
    """
    lines = read_lines(file, findings)
    count = max((number for number, line in enumerate(lines, start=1) if line), default=0)
    return dict(enumerate(lines[:count]))


def note_repeated_names(names: Mapping[int, str], findings: FindingCollector) -> None:
    """Add a finding for each name of several classes, which cannot be distinguished."""
    numbers: dict[str, list[int]] = {}
    for number, name in names.items():
        numbers.setdefault(name, []).append(number)
    for name, repeated in numbers.items():
        if len(repeated) > 1:
            what = f"{name!r} is the name of {len(repeated)} classes: {listed(repeated)}"
            findings.add("repeated_category", what if name else f"classes {listed(repeated)} have no name")
