"""The processes of a run, their devices, precision and trackers: all that accelerate looks after."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from querybox.data import Batch, DetectionData
from querybox.errors import ConfigError, MissingExtraError, ProcessError, QueryboxError, WorkerError
from querybox.evaluation.evaluate import detect_records, measure
from querybox.evaluation.result import Evaluation
from querybox.fast import optimize
from querybox.inference.detections import Detections
from querybox.modules.detector import DetectionTransformer
from querybox.training.interrupt import StopRequest
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = timedelta(minutes=10)
"""After so long without an answer, the other processes give a process up. None has to wait for another for longer than
one step, one checkpoint or one round of an evaluation takes."""
ROUND = 32
"""Images that a process evaluates between two looks at the others: soon enough to see that one ended."""


class StopAskedFor(Exception):  # noqa: N818 - no error
    """A signal came during an evaluation."""


@contextmanager
def named_deaths() -> Iterator[None]:
    """Say in the library's words what PyTorch says where it lost a process.

    Raises:
        WorkerError: One that loads images.
        ProcessError: Another one of the training.
    """
    from torch.distributed import DistError

    try:
        yield
    except QueryboxError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if "DataLoader worker (pid" in reason:
            raise worker_error(reason) from error
        if isinstance(error, DistError) or re.search("gloo|NCCL", reason):
            raise ProcessError(
                f"another process of this training ended, or did not answer for {TIMEOUT.seconds // 60} minutes; its "
                f"own last words say why. The last checkpoint is intact: go on with --resume ({reason})"
            ) from error
        raise


def take(batches: Iterator[Batch], count: int) -> tuple[Batch, ...]:
    """Take up to so many of the coming batches.

    Raises:
        WorkerError: A process that loads images ended while it handed one over.
    """
    try:
        return tuple(islice(batches, count))
    except (EOFError, ConnectionError, FileNotFoundError) as error:
        raise worker_error(repr(error)) from error


def worker_error(reason: str) -> WorkerError:
    """Return the error that tells of a process that loads images."""
    return WorkerError(
        f"a process that loads images ended ({reason}): mostly, the memory is used up. The last checkpoint is intact: "
        "go on with --resume, with fewer 'data.workers' if it happens again"
    )


def start_processes(settings: RunSettings) -> Accelerator:
    """Return the accelerator of this process; one of several under ``accelerate launch`` or ``torchrun``.

    Raises:
        ConfigError: The device does not know the precision, or a tracker is unknown.
        MissingExtraError: A tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    check_trackers(settings.train.trackers)
    AcceleratorState._reset_state()  # or a second run in this process could not have another precision
    try:
        return Accelerator(
            mixed_precision=settings.train.precision,
            log_with=list(settings.train.trackers) or None,
            project_dir=settings.output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
    except ValueError as error:
        raise ConfigError(
            f"setting 'train.precision' got '{settings.train.precision}', which this device cannot do ({error});"
            " use 'no'"
        ) from None


def check_trackers(names: Sequence[str]) -> None:
    """Make sure that accelerate knows the trackers and that they are installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f"setting 'train.trackers' got '{name}'; expected some of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in available:
            raise MissingExtraError(
                f"setting 'train.trackers' got '{name}', which is not installed: pip install {name}"
            )


def start_trackers(accelerator: Accelerator, settings: RunSettings) -> None:
    """Open the trackers and tell them the settings."""
    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.flat().items()}
    accelerator.init_trackers("querybox", config=plain)


def evaluate_together(
    accelerator: Accelerator,
    data: DetectionData,
    detector: DetectionTransformer,
    max_corrupt: float,
    request: StopRequest,
) -> Evaluation | None:
    """Evaluate `detector` on `data`, each process detecting on its share of the images; all get the whole result.

    Args:
        accelerator: The processes.
        data: The images and their objects.
        detector: To be measured.
        max_corrupt: Share of the images (0-1) that may be unreadable.
        request: To stop.

    Returns:
        What was found; None in every process, if one of them was asked to stop.
    """
    from accelerate.utils import gather_object

    def look(_: Detections) -> None:
        if request.signal is not None:
            raise StopAskedFor

    engine = optimize(detector)
    own = data.images[accelerator.process_index :: accelerator.num_processes]
    detections: dict[int, Detections] = {}
    unreadable: dict[int, str] = {}
    for first in range(0, len(data.images[:: accelerator.num_processes]), ROUND):
        found: tuple[dict[int, Detections], dict[int, str]] = ({}, {})
        with suppress(StopAskedFor):
            found = detect_records(engine, own[first : first + ROUND], callback=look)
        parts = gather_object([(found, request.signal is not None)])
        if any(asked for _, asked in parts):
            return None
        for (part, errors), _ in parts:
            detections |= part
            unreadable |= errors
    return measure(data, detections, unreadable, max_corrupt)
