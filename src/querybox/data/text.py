"""Read the text files of a dataset."""

from __future__ import annotations

from pathlib import Path

from querybox.errors import DataError


def read_lines(file: Path) -> list[str]:
    """Return the stripped lines of a UTF-8 file, including empty ones, so that line numbers are kept.

    Raises:
        DataError: The file cannot be read or is not UTF-8 text.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); expected UTF-8 text") from None
