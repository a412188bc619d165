"""The exceptions of the library. Messages state the location, what was found, what was expected, and the cure.

```text
QueryboxError
├── ConfigError        a setting is unknown, malformed, or does not fit another one
├── DataError          a dataset cannot be used as it is
│   └── ImageError     an image cannot be read
├── CheckpointError    a weights or checkpoint file is missing, corrupt, or does not fit the model
├── ExportError        an exported model predicts differently from its detector
├── PredictionError    a prediction is NaN or infinite
├── DiskFullError      there is no space to write a file
├── StorageError       a storage or web server cannot be reached, or refuses
├── OutOfMemoryError   there is not enough memory
├── TrainingError      training cannot continue
│   ├── NonFiniteError a loss, a matching cost or a gradient is NaN or infinite
│   ├── ProcessError   one of several training processes exited, or does not respond
│   └── WorkerError    a process that loads images exited
└── MissingExtraError  an optional package is not installed
```
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from querybox.urls import without_credentials


class QueryboxError(Exception):
    """Base class of all exceptions that the library raises deliberately.

    A path with spaces at the beginning of the message is quoted, so that it can be told from the text and copied. URLs
    in the message have no credentials.
    """

    def __init__(self, message: str) -> None:
        path, colon, rest = message.partition(": ")
        missing = rest.startswith("no such") and not path.startswith("'")  # quoted before it was pickled
        if colon and " " in path and (missing or os.path.exists(path)):  # noqa: PTH110 - raises no errors
            message = f"'{path}'{colon}{rest}"
        super().__init__(without_credentials(message))


class ConfigError(QueryboxError, ValueError):
    """A setting is unknown, malformed, or does not fit another one."""


class DataError(QueryboxError, ValueError):
    """A dataset, or one of its files, cannot be used as it is."""


class ImageError(DataError):
    """An image is missing, corrupt, or not an image.

    Attributes:
        kind: The kind of problem, one of `querybox.data.findings.UNREADABLE`.
    """

    def __init__(self, message: str, kind: str = "broken_image") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(QueryboxError, ValueError):
    """A weights or checkpoint file is missing, corrupt, or does not fit the model."""


class ExportError(QueryboxError, RuntimeError):
    """An exported model predicts differently from its detector; nothing was written."""


class PredictionError(QueryboxError, RuntimeError):
    """A prediction is NaN or infinite, so that there are no detections."""


class DiskFullError(QueryboxError, OSError):
    """There is no space to write a file; an existing file is unchanged."""


class StorageError(QueryboxError, OSError):
    """A storage or web server cannot be reached, or refuses; nothing is said about the file."""


class OutOfMemoryError(QueryboxError, MemoryError):
    """There is not enough memory, of the machine or of the GPU."""


class TrainingError(QueryboxError, RuntimeError):
    """Training cannot continue."""


class NonFiniteError(TrainingError):
    """A loss, a matching cost or a gradient is NaN or infinite; the weights were not updated."""


class ProcessError(TrainingError):
    """One of several training processes exited, or does not respond; the run can be resumed."""


class WorkerError(TrainingError):
    """A process that loads images exited, usually for lack of memory; a run can be resumed."""


class MissingExtraError(QueryboxError, ImportError):
    """An optional package is required; the message names the extra that installs it."""


@contextmanager
def requires_extra(extra: str, action: str) -> Iterator[None]:
    """Context manager around the imports of optional packages.

    Args:
        extra: The extra of querybox that installs them.
        action: What they are needed for; begins the message.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{action} needs the package {error.name}, which is not installed: pip install 'querybox[{extra}]'"
        ) from None
