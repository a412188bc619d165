"""The entry point: commands, and how errors are reported."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    Token,
    UnknownOptionError,
)
from cyclopts import convert as convert_words

from querybox import __version__
from querybox.cli.benchmark import benchmark
from querybox.cli.convert import convert
from querybox.cli.diagnose import diagnose
from querybox.cli.evaluate import evaluate
from querybox.cli.export import export
from querybox.cli.info import info
from querybox.cli.inspect import inspect
from querybox.cli.needs import with_needs
from querybox.cli.predict import predict
from querybox.cli.queries import queries
from querybox.cli.serve import serve
from querybox.cli.split import split
from querybox.cli.streams import CLOSED_OUTPUT, is_closed, prepare_streams, stdout_error, write_stderr
from querybox.cli.trace import trace
from querybox.cli.train import setting_hint, train
from querybox.cli.validate import validate
from querybox.errors import QueryboxError
from querybox.interrupt import exiting_on_signals
from querybox.memory import first_line, is_out_of_memory

HELP = """Object detection with DETR: train detectors on your own images, evaluate them, detect objects.

From annotated images to detections:

```
querybox info photos/                # describe a dataset
querybox validate photos/            # find problems in it
querybox train photos/ --output run  # train on it
querybox diagnose run                # find likely causes of a low AP
querybox evaluate run photos/        # compute the COCO metrics
querybox predict run new_photos/     # detect objects
querybox export run --to onnx        # for other runtimes
querybox serve run                   # answer HTTP requests
```

`querybox COMMAND --help` describes a command, with examples.
"""

EPILOGUE = """`--debug` with any command: show the stack trace of an error.

Exit codes: 0 success; 1 finished, but the data cannot be used (validate) or some files cannot be read (predict); 2 an
error, with a message of one line that says how to fix it; 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP,
once training has written its checkpoint, predict what it found in a live source, and any other command has removed what
it had written in part. If querybox shows a stack trace, this is a bug: please report it.
"""
COMMAND_EPILOGUE = "Exit codes and `--debug`: see `querybox --help`."


def convert_exactly(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert the words of an argument as cyclopts does, but for integers with a fraction, which it would round.

    Raises:
        CoercionError: An integer has a fraction.
    """
    if kind is int or int in get_args(kind):
        for token in tokens:
            with suppress(ValueError, OverflowError):  # cyclopts names what is not a number
                if "." in token.value and not float(token.value).is_integer():
                    raise CoercionError(msg=f"{token.value} is not an integer.", token=token)
    return convert_words(kind, tokens)


app = App(
    name="querybox",
    help=HELP,
    help_format="markdown",
    help_epilogue=EPILOGUE,
    version=f"querybox {__version__}",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    default_parameter=Parameter(converter=convert_exactly, negative=()),
)
COMMANDS: tuple[Callable[..., int | None], ...] = (
    validate,
    split,
    train,
    diagnose,
    evaluate,
    predict,
    serve,
    trace,
    inspect,
    queries,
    export,
    convert,
    benchmark,
    info,
)
for index, command in enumerate(COMMANDS):  # in the order of a workflow, not alphabetically
    app.command(with_needs(command), sort_key=index, help_epilogue=COMMAND_EPILOGUE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: The arguments after ``querybox``; by default those of this process.

    Returns:
        Exit code: 0 on success, 1 if there are problems in the data, 2 after an error that the user can fix, which is
        printed to stderr in one line, 130 after Ctrl-C, or 141 if the reader of standard output has gone.

    Raises:
        SystemExit: SIGTERM or SIGHUP stopped the command; the code is 143 or 129.
    """
    prepare_platform()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if any(is_empty(word) for word in words):
        return fail(
            "ConfigError: an argument is empty; expected a path or another value: check for variables of the shell "
            "that are not set",
            debug,
        )
    try:
        with log_to_stderr(), exiting_on_signals():
            code: int | None = app(
                [word for word in words if word != "--debug"], exit_on_error=False, print_error=False
            )
    except KeyboardInterrupt:
        if arguments is None:  # a second one, while Python ends this process, would print stack traces
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return fail("interrupted", debug, code=130)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # raised by rich
            return CLOSED_OUTPUT
        raise
    except Exception as error:
        if isinstance(error, OSError) and not error.filename and (broken := stdout_error("\n")):
            return fail_to_print(broken, debug)
        if message := describe(error, words):
            return fail(message, debug)
        raise
    broken = stdout_error()
    return fail_to_print(broken, debug) if broken else code or 0


def describe(error: Exception, words: Sequence[str]) -> str | None:
    """Return the message for an error that the user can fix; None for others, which are bugs."""
    if isinstance(error, CycloptsError):
        what = describe_missing(error) if isinstance(error, MissingArgumentError) else str(error)
        return f"{what} Cure: {cure(error, words)}."
    if isinstance(error, QueryboxError):
        return f"{type(error).__name__}: {quote_paths(str(error), words)}"
    if is_out_of_memory(error):
        return (
            f"OutOfMemoryError: there is not enough memory ({first_line(error)}); use smaller images, a smaller "
            "--batch-size, or a smaller model"
        )
    if isinstance(error, UnicodeEncodeError) and error.encoding == "ascii":
        return (
            f"ConfigError: the file name {error.object!r} cannot be written in ASCII, the encoding of this process; "
            "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8"
        )
    if isinstance(error, OSError):
        message = quote_paths(f"{error.filename or 'system'}: {error.strerror or error}", words)
        return f"{message}; check the path, its permissions and the disk"
    return None


def describe_missing(error: MissingArgumentError) -> str:
    """Return which argument a command did not get, and what the command's help says about it."""
    assert error.argument is not None
    (command,) = error.command_chain or ()
    name = error.argument.name
    known = app[command].assemble_argument_collection(parse_docstring=True)
    (text,) = (str(each.parameter.help) for each in known if each.name == name)
    return f"querybox {command} got no {'value for ' if error.keyword else ''}{name}: {text}"


def is_empty(word: str) -> bool:
    """Return whether an argument, or the value of an option, is empty; an empty path would be the current folder."""
    return not word or (word.startswith("--") and word.endswith("="))


def prepare_platform() -> None:
    """Make output and devices robust on every system, before PyTorch is imported."""
    prepare_streams()
    if sys.platform == "darwin":  # for operators that the GPU does not have in this version of PyTorch
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def fail(message: str, debug: bool, code: int = 2) -> int:
    """Print an error message in one line, after the stack trace if `debug`, and return the exit code."""
    if debug:
        write_stderr(traceback.format_exc())
    write_stderr(" ".join(message.split()) + "\n")
    return code


def fail_to_print(error: OSError, debug: bool) -> int:
    """Return the exit code for an error of standard output; one line names it, unless its reader has gone."""
    if is_closed(error):
        return CLOSED_OUTPUT
    return fail(f"standard output: {error.strerror or error}; write it to another place", debug)


def quote_paths(message: str, words: Sequence[str]) -> str:
    """Quote paths with spaces in a message, so that they can be told from the text and copied.

    Args:
        message: The message.
        words: The arguments of the command line, which name the paths or the folders that contain them.
    """
    values = {word.partition("=")[2] if "=" in word else word for word in words}
    paths = {path for value in values if value for path in (value, whole_path(value)) if " " in path}
    for path in sorted(paths, key=len, reverse=True):
        head, colon, rest = message.partition(": ")
        if head.startswith(path) and Path(head).exists():
            return f"'{head}'{colon}{rest}"
        message = re.sub(rf"(?<![\w'/\\]){re.escape(path)}[^\s:;,)']*", r"'\g<0>'", message)
    return message


def whole_path(text: str) -> str:
    """Return the absolute path that a text could stand for; the text itself if it can be none."""
    try:
        return str(Path(text).resolve())
    except (OSError, ValueError, RuntimeError):  # no current folder; a null character; links in a circle
        return text


def cure(error: CycloptsError, words: Sequence[str]) -> str:
    """Return how to correct these arguments."""
    see = f"see {help_command(words)}"
    if words[:1] == ["train"] and isinstance(error, UnknownOptionError) and (hint := setting_hint(words[1:])):
        return f"{hint}; {see}"
    return see


def help_command(words: Sequence[str]) -> str:
    """Return the help command for these arguments."""
    commands = [word for word in words[:1] if word in app and not word.startswith("-")]
    return " ".join(["querybox", *commands, "--help"])


class StderrHandler(logging.Handler):
    """Writes to the present stderr, which a progress bar replaces so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message in one line, whatever the names in it contain."""
        write_stderr(" ".join(self.format(record).splitlines()) + "\n")


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print the library's log messages while a command runs."""
    logger = logging.getLogger("querybox")
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
