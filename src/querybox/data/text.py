"""Read the text files of a dataset."""

from __future__ import annotations

import codecs
import io
import locale
import re
from collections.abc import Iterator
from pathlib import Path

from querybox.data.findings import FindingCollector
from querybox.errors import DataError
from querybox.files import is_regular, require_regular

MAX_BYTES = 1 << 31
"""Maximum size of a file that is read into memory."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PAIR = re.compile(rb"[\x80-\xff].?", re.DOTALL)
"""A character of GBK that is not ASCII; or one of Windows-1252, and what follows it."""
_COMMON = re.compile(rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]")
"""Punctuation, and level 1 of GB 2312."""
_ACCENTED, _LETTER = re.compile(rb"[\x80-\xff]"), re.compile(rb"[A-Za-z]")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
"""Bytes that do not occur in text."""
_SAMPLE = 1 << 20
"""Number of bytes from which the encoding is determined."""


def read_start(file: Path, count: int) -> bytes:
    """Return the first `count` bytes of a file, by which it is recognised; nothing if it is not a regular file.

    Raises:
        OSError: It cannot be read.
    """
    if not is_regular(file):
        return b""
    with file.open("rb") as stream:
        return stream.read(count)


def read_bounded(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: It cannot be read, is not a regular file, or is larger than `MAX_BYTES`.
    """
    require_regular(file, DataError)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{file}: has {size:,} bytes; expected at most {MAX_BYTES:,}: split the file")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def read_text(file: Path, findings: FindingCollector) -> str:
    """Return the content of a text file; see `decode`.

    Raises:
        DataError: The file cannot be read or is not text.
    """
    return decode(read_bounded(file), file, findings)


def read_lines(file: Path, findings: FindingCollector) -> list[str]:
    """Return the stripped lines of a text file, including empty ones, so that line numbers are kept; see `decode`.

    Raises:
        DataError: The file cannot be read or is not text.
    """
    return stripped_lines(read_text(file, findings))


def stripped_lines(text: str) -> list[str]:
    """Return the stripped lines of a text, which end where they end for editors.

    `str.splitlines` also ends them at separators such as U+2028, which shifts the numbers of the lines that follow.
    """
    return [line.strip() for line in io.StringIO(text, newline=None)]


def decode_head(content: bytes) -> str:
    """Decode the beginning of a text file, which may end within a character; see `decode`.

    Returns:
        The text without a byte order mark; empty if it is not text in any of the encodings.
    """
    encoding = encoding_of(content)
    if encoding is None:
        return ""
    return codecs.getincrementaldecoder(encoding)().decode(content).removeprefix("\ufeff")


def encoding_of(content: bytes, *, whole: bool = False) -> str | None:
    """Return the encoding of a text file; None if it is not text in any; see `decode`.

    Args:
        content: The content, or its beginning.
        whole: Whether it is the whole content; otherwise it may end within a character.
    """
    marked = [encoding for mark, encoding in _BYTE_ORDER_MARKS if content.startswith(mark)]
    for encoding in marked or _candidates(content):
        try:
            codecs.getincrementaldecoder(encoding)().decode(content, final=whole)
        except UnicodeDecodeError:
            continue
        return encoding
    return None


def _candidates(content: bytes) -> Iterator[str]:
    yield "utf-8"
    yield locale.getpreferredencoding(do_setlocale=False)
    yield _likely(content)  # takes a hundred times as long as decoding UTF-8


def _likely(content: bytes) -> str:
    """Return which of the encodings of Windows is the more likely one: GBK (Chinese), or 1252 (Western Europe).

    An accented letter before an ASCII letter is a character of GBK as well, but a very rare one. So are two accented
    letters, unless they are a common character: punctuation, or level 1 of GB 2312. As any bytes can be read as
    Windows-1252, it is only likely for what looks like text.
    """
    sample = content[:_SAMPLE]
    pairs = _PAIR.findall(sample)
    single = sum(len(pair) < 2 or pair[1] < 0x80 for pair in pairs)
    is_western = 2 * single >= len(pairs) or not any(map(_COMMON.fullmatch, pairs))
    is_text = len(_ACCENTED.findall(sample)) <= len(_LETTER.findall(sample)) and not _CONTROL.search(sample)
    return "cp1252" if is_western and is_text else "gbk"


def decode(content: bytes, file: Path, findings: FindingCollector) -> str:
    """Decode the content of a text file.

    Its encoding is that of its byte order mark, otherwise UTF-8. If it is not UTF-8, that of the system's locale is
    tried, then GBK or Windows-1252, whichever is more likely, and a finding is added.

    Raises:
        DataError: The content is not text in any of these encodings.
    """
    encoding = encoding_of(content, whole=True)
    if encoding is None:
        try:
            return content.decode()  # which fails, and says where
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: cannot be read ({error}); expected UTF-8 text") from None
    if not encoding.startswith("utf"):
        findings.add("other_encoding", f"{file}: read as {encoding.lower()}")
    return content.decode(encoding)
