"""The names of classes by number, and files with one name per line, such as `classes.txt`, numbered from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from querybox.data.findings import FindingCollector
from querybox.data.parsing import MAX_NAME
from querybox.data.text import decode, read_lines, stripped_lines
from querybox.errors import ConfigError
from querybox.text import listed

CLASSES = "classes.txt"
"""Name of the file that querybox writes."""


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


def names_by_number(names: Sequence[str] | dict[int, str]) -> dict[int, str]:
    """Return the names of classes by number; a list is numbered from 0."""
    return names if isinstance(names, dict) else dict(enumerate(names))


def note_repeated_names(names: Mapping[int, str], findings: FindingCollector) -> None:
    """Add a finding for each name of several classes, which cannot be distinguished."""
    numbers: dict[str, list[int]] = {}
    for number, name in names.items():
        numbers.setdefault(name, []).append(number)
    for name, repeated in numbers.items():
        if len(repeated) > 1:
            what = f"{name!r} is the name of {len(repeated)} classes: {listed(repeated)}"
            findings.add("repeated_category", what if name else f"classes {listed(repeated)} have no name")


def names_text(names: Sequence[str], source: Path | str, cure: str) -> str:
    """Return the content of a file of class names, which `read_names` reads as they are.

    Args:
        names: The names by class number.
        source: Where they are from, for messages.
        cure: What to do if the file cannot hold one of them, other than to rename it.

    Raises:
        ConfigError: The file cannot hold one of them: it is empty, begins or ends with a space, has a line break or
            what is not text, or is longer than names in annotations may be.
    """
    refused = [name for name in names if _as_read(name) != [name] or len(name) > MAX_NAME]
    if refused:
        shown = listed([repr(name[:80]) for name in refused])
        raise ConfigError(
            f"{source}: there are class names that a line of {CLASSES} cannot hold: {shown}; expected "
            f"1 to {MAX_NAME:,} characters without line breaks, and without spaces at the ends: rename these classes, "
            f"or {cure}"
        )
    return "".join(f"{name}\n" for name in names)


def _as_read(name: str) -> list[str]:
    """Return the lines that are read from a file that contains a name."""
    content = f"{name}\n".encode(errors="backslashreplace")  # as `write_text` writes it
    return [
        line for line in stripped_lines(decode(content, Path(CLASSES), FindingCollector(CLASSES))) if line
    ]
