"""The standard streams of a command, which may be closed, full or missing."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress

from querybox.text import printable, to_json
from querybox.urls import without_credentials

UNREADABLE = 1
"""Exit code if some images or files could not be read."""
CLOSED_OUTPUT = 141
"""Exit code if the reader of standard output has gone: 128 + SIGPIPE, as of programs that this signal ends."""


def prepare_streams() -> None:
    """Let any text be printed, also in a process without standard streams."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - open as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - the same
    if isinstance(sys.stdout, io.TextIOWrapper):  # otherwise some class and file names could not be printed
        sys.stdout.reconfigure(errors="backslashreplace")


def print_text(text: str) -> None:
    """Print one or more lines, in which control characters are shown as escapes."""
    print(printable(text))


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print a value as JSON, which is UTF-8: in ASCII if the output has another encoding, as files on Windows."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    print_text(to_json(value, indent=indent, ensure_ascii=encoding != "utf-8"))


def write_stderr(text: str) -> None:
    """Write to the present stderr as far as possible: a message that cannot be shown must not end a command.

    URLs in it, such as those that other libraries repeat in their errors, are shown without credentials.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write(printable(without_credentials(text)))


def print_summary(line: str) -> None:
    """Print the last line of a command whose results are files; it does not fail if nobody can read the line."""
    try:
        print(printable(line), flush=True)
    except OSError:
        discard_stdout()


def stdout_error(text: str = "") -> OSError | None:
    """Return why standard output cannot be written to, and discard what was printed; None if it can.

    Args:
        text: What to print first. After an error, what could not be printed may no longer be in the buffer: if it was
            longer, or with PYTHONUNBUFFERED.
    """
    try:
        print(text, end="", flush=True)
    except OSError as error:
        discard_stdout()
        return error
    return None


def is_closed(error: OSError) -> bool:
    """Return whether an error of standard output means that its reader has gone; Windows calls it another one."""
    return isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)


def discard_stdout() -> None:
    """Connect standard output to the null device, so that Python can flush it when it exits."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
