"""The library's exceptions: one tree, and every message says where, what it got, what it expected, the cure.

```text
QueryboxError
├── ConfigError        a setting is unknown, malformed, or does not fit another one
├── DataError          a dataset cannot be used as it is
│   └── ImageError     one image cannot be read
├── CheckpointError    a weights or checkpoint file is missing, corrupt, or does not fit
├── ExportError        an exported model does not answer as its detector does
├── DiskFullError      a file cannot be written whole; the older one is as it was
├── TrainingError      training cannot go on
│   ├── NonFiniteError a loss, a cost or a gradient is NaN or infinite
│   ├── ProcessError   one of several training processes ended, or does not answer
│   └── WorkerError    a process that loads images ended
└── MissingExtraError  an optional package is not installed
```
"""

from __future__ import annotations


class QueryboxError(Exception):
    """Base of every error that the library raises on purpose."""


class ConfigError(QueryboxError, ValueError):
    """A setting is unknown, malformed, or does not fit another one."""


class DataError(QueryboxError, ValueError):
    """A dataset, or one of its files, cannot be used as it is."""


class ImageError(DataError):
    """One image is missing, not an image, or broken.

    Attributes:
        kind: What is wrong, one of `querybox.data.findings.UNREADABLE`.
    """

    def __init__(self, message: str, kind: str = "broken_image") -> None:
        super().__init__(message)
        self.kind = kind


class CheckpointError(QueryboxError, ValueError):
    """A weights or checkpoint file is missing, corrupt, or does not fit the model."""


class ExportError(QueryboxError, RuntimeError):
    """An exported model does not answer as its detector does; its file was not kept."""


class DiskFullError(QueryboxError, OSError):
    """There is no room to write a file; what it held before is intact."""


class TrainingError(QueryboxError, RuntimeError):
    """Training cannot go on."""


class NonFiniteError(TrainingError):
    """A loss, a matching cost or a gradient is NaN or infinite; nothing was updated."""


class ProcessError(TrainingError):
    """One of several training processes ended, or does not answer; the run can be resumed."""


class WorkerError(TrainingError):
    """A process that loads images ended, mostly for want of memory; the run can be resumed."""


class MissingExtraError(QueryboxError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""
