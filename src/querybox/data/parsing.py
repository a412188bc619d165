"""Parse the JSON, CSV and XML files of a dataset, and recognise what they contain from their first bytes."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import pydantic_core
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring, iterparse
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError

from querybox.data.findings import FindingCollector
from querybox.data.image import MAX_PIXELS
from querybox.data.text import decode_head, encoding_of, read_bounded, read_start, read_text
from querybox.errors import DataError
from querybox.files import is_regular, require_regular

MAX_NAME = 1000
"""Maximum number of characters of a name."""
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_NAME)]
"""Name of a class or a file in annotations."""


def without_bool(value: object) -> object:
    """Return a value of JSON or YAML that is not true or false, for which pydantic would take 1 and 0.

    Raises:
        ValueError: It is one of them, or a list with one.
    """
    if isinstance(value, bool) or (isinstance(value, list) and bool in map(type, value)):
        raise ValueError("Input should be a number, not true or false")
    return value


NO_BOOL = BeforeValidator(without_bool)
"""Refuses true and false for a number, or among a list of numbers."""
Number = Annotated[float, NO_BOOL]
Finite = Annotated[float, Field(allow_inf_nan=False), NO_BOOL]
Whole = Annotated[int, NO_BOOL]
Natural = Annotated[int, Field(ge=0, lt=2**63), NO_BOOL]

HEAD = 1 << 16
"""Number of bytes that are read to recognise a file."""

_ROOT_TAG = re.compile(rb"<([A-Za-z_][\w.-]*)")
_ALTERNATIVE = re.compile(r"int|str|float|bool|constrained-\w+|(list|dict|tuple|function-before)\[.*\]")
"""What pydantic appends to the place of a value of which several types are valid."""
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)


class Row(NamedTuple):
    """A row of a CSV file."""

    where: str
    """File and line, for messages."""
    values: dict[str, str]
    """Values by column name, see `csv_columns`, stripped; empty where the row is too short."""


def read_head(file: Path) -> str:
    """Return the first `HEAD` bytes of a file as text; nothing if it is not text or cannot be read."""
    return decode_head(_first_bytes(file))


def _first_bytes(file: Path) -> bytes:
    try:
        return read_start(file, HEAD)
    except OSError:
        return b""


def json_head(file: Path) -> Any:
    """Return what the first `HEAD` bytes of a JSON file contain; see `partial_json`."""
    return partial_json(read_head(file))


def partial_json(content: str) -> Any:
    """Return what the beginning of a JSON text contains, with truncated lists and objects; None if it is not JSON."""
    try:
        return pydantic_core.from_json(content, allow_partial=True)
    except ValueError:
        return None


def read_json(file: Path, expected: str, findings: FindingCollector) -> Any:
    """Return the content of a JSON file.

    Args:
        file: The file.
        expected: What it should contain, for the message.
        findings: Collects findings about its encoding.

    Raises:
        DataError: The file cannot be read or is not JSON.
    """
    return parse_json(read_text(file, findings), str(file), expected)


def parse_json(content: str, where: str, expected: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        DataError: It is not JSON; the message says where.
    """
    try:
        return pydantic_core.from_json(content)
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected {expected}") from None


def validation_problem(error: Exception) -> str:
    """Return what is wrong in one line: the first problem of a validation, with its place, or the text of an error."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) for part in first["loc"] if not _ALTERNATIVE.fullmatch(str(part))]
    place = re.sub(r"\.(\d+)", r"[\1]", ".".join(parts))
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def csv_columns(file: Path) -> tuple[str, ...]:
    """Return the column names of a CSV file in lower case, `x_min` for `X Min`; empty if its first line is not CSV."""
    reader = csv.reader([_first_line(file)], delimiter=csv_delimiter(file))
    try:
        return tuple(map(_column, next(reader, [])))
    except csv.Error:
        return ()


def _column(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def csv_delimiter(file: Path) -> str:
    """Return the delimiter of a CSV file by its first line: a comma, a tab, or Excel's semicolon in many languages."""
    return max(",;\t", key=_first_line(file).count)


def _first_line(file: Path) -> str:
    return read_head(file).partition("\n")[0]


def csv_rows(file: Path, findings: FindingCollector) -> Iterator[list[str]]:
    """Yield the rows of a CSV file. Its encoding is that of its first `HEAD` bytes; see `decode`.

    Raises:
        DataError: The file is not text or not CSV. (The csv module limits the length of a value.)
    """
    yield from (row for _, row in _numbered_rows(file, findings))


def read_csv(file: Path, findings: FindingCollector, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV file; empty rows are left out.

    Args:
        file: The file.
        findings: Collects findings about its encoding.
        columns: Names of the columns; None if they are in the first row.

    Raises:
        DataError: As for `csv_rows`.
    """
    for number, row in _numbered_rows(file, findings):
        if columns is None:
            columns = [_column(name) for name in row]
        elif any(row):
            values = [value.strip() for value in row] + [""] * (len(columns) - len(row))
            yield Row(f"{file}, line {number}", dict(zip(columns, values, strict=False)))


def _numbered_rows(file: Path, findings: FindingCollector) -> Iterator[tuple[int, list[str]]]:
    require_regular(file, DataError)
    encoding = encoding_of(_first_bytes(file)) or "utf-8"
    if not encoding.startswith("utf"):
        findings.add("other_encoding", f"{file}: read as {encoding.lower()}")
    try:
        with file.open(encoding=encoding, newline="") as stream:
            reader = csv.reader(stream, delimiter=csv_delimiter(file))
            yield from ((reader.line_num, row) for row in reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV: {error}; expected UTF-8 text") from None


def to_numbers(texts: Sequence[str | None]) -> list[float] | None:
    """Return the numbers that are written in `texts`, NaN and infinity included; None if one is not a number."""
    try:
        return [float(text or "") for text in texts]
    except ValueError:
        return None


def stated_size(height: str | float | None, width: str | float | None) -> tuple[int, int] | None:
    """Return (height, width) of an image; None if one is missing or invalid, because some tools write 0 or nothing."""
    try:
        sides = int(float(height or 0)), int(float(width or 0))
    except (ValueError, OverflowError):
        return None
    return sides if all(0 < side <= MAX_PIXELS for side in sides) else None


def xml_root(file: Path) -> str:
    """Return the tag of the root element of an XML file; empty if it is not XML."""
    found = _ROOT_TAG.search(_COMMENT.sub(b"", _first_bytes(file).replace(b"\0", b"")))
    return found[1].decode() if found else ""


def xml_element(file: Path, tag: str, *, before: frozenset[str]) -> Element | None:
    """Return the first element `tag` of an XML file, which is read only up to its end.

    Returns:
        None if there is none before an element of `before`, or if the file is not XML, which `read_xml` reports.
    """
    if not is_regular(file):
        return None
    try:
        for _, element in iterparse(file, forbid_dtd=True):
            if element.tag == tag:
                return element
            if element.tag in before:
                return None
    except (ParseError, DefusedXmlException, OSError, ValueError, LookupError):
        return None
    return None


def read_xml(file: Path) -> Element:
    """Return the root element of an XML file.

    Raises:
        DataError: The file cannot be read, is not well-formed, or declares a document type or entities.
    """
    return parse_xml(read_bounded(file), str(file))


def parse_xml(content: bytes | str, where: str) -> Element:
    """Return the root element of an XML text.

    Raises:
        DataError: It is not well-formed, or declares a document type or entities.
    """
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except ParseError as error:
        raise DataError(f"{where}: is not well-formed XML: {error}") from None
    except DefusedXmlException:
        raise DataError(
            f"{where}: declares a document type or entities, which are not allowed; remove them"
        ) from None
    except (ValueError, LookupError) as error:  # unknown or multi-byte encodings
        raise DataError(f"{where}: cannot be read as XML: {error}") from None
    return root
