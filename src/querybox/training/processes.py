"""The processes of a run: accelerate, its precision and trackers, and distributed evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

from querybox.data import Batch, DataSettings, DetectionData
from querybox.data.loader import EXITED, worker_error, worker_errors
from querybox.data.tiled import tiling_of
from querybox.errors import (
    ConfigError,
    MissingExtraError,
    OutOfMemoryError,
    ProcessError,
    QueryboxError,
)
from querybox.evaluation.evaluate import detect_records, measure
from querybox.evaluation.result import Evaluation
from querybox.inference.detections import Detections
from querybox.inference.engine import default_device
from querybox.inference.optimized_model import OptimizedModel
from querybox.interrupt import StopRequest
from querybox.memory import first_line, is_out_of_memory
from querybox.modules.detector import DetectionTransformer
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = timedelta(minutes=10)
"""Timeout of collective operations. Processes wait for each other no longer than a step, a checkpoint or a round of an
evaluation takes."""
RESUME = (
    "The last checkpoint is intact: continue with --resume, with fewer 'data.workers' if it happens again"
)
"""What to do if a process that loads images has exited."""
ROUND = 32
"""Number of images that a process evaluates between synchronisations, which detect that another process exited."""


class StopRequested(Exception):  # noqa: N818 - not an error
    """A signal was received during an evaluation."""


@contextmanager
def translate_process_errors() -> Iterator[None]:
    """Translate the errors that PyTorch raises when a process has exited or there is not enough memory.

    Raises:
        WorkerError: A process that loads images exited.
        ProcessError: Another training process exited.
        OutOfMemoryError: There is not enough memory.
    """
    from torch.distributed import DistError

    try:
        yield
    except QueryboxError:
        raise
    except (MemoryError, RuntimeError) as error:
        reason = first_line(error)
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"there is not enough memory ({reason}); set a larger 'train.accumulate', or a smaller "
                "'train.batch_size', 'data.image_size' or model"
            ) from error
        if EXITED in reason:
            raise worker_error(reason, RESUME) from error
        if isinstance(error, DistError) or re.search("gloo|NCCL", reason):
            raise ProcessError(
                f"another training process exited, or did not respond for {TIMEOUT.seconds // 60} minutes; see its "
                f"output for the reason. The last checkpoint is intact: continue with --resume ({reason})"
            ) from error
        raise


def next_batches(batches: Iterator[Batch], count: int) -> tuple[Batch, ...]:
    """Return the next `count` batches, or those that are left.

    Raises:
        ConfigError: The user's transform failed.
        WorkerError: A process that loads images exited.
    """
    try:
        with worker_errors(RESUME):
            return tuple(islice(batches, count))
    except ConfigError as error:  # its text is the traceback in the worker
        raise ConfigError(str(error).rstrip().rpartition("ConfigError: ")[2]) from error


def synchronize_batch_norms(model: nn.Module) -> None:
    """Let batch norms that are trained use the statistics of the images of all processes, in place; for GPUs only."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d) and norm.weight.requires_grad:
                setattr(parent, name, convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]


def seed_step(accelerator: Accelerator, seed: int, step: int) -> None:
    """Seed the random numbers of a training step from the seed of the run, the step and the process alone."""
    key = (seed, step, accelerator.process_index)
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(state)
    # Not `torch.manual_seed`, which takes milliseconds to prepare for all devices that there might be.
    if (kind := accelerator.device.type) != "cpu":
        getattr(torch, kind).manual_seed(state)


def start_processes(settings: RunSettings) -> Accelerator:
    """Create the accelerator of this process, which may be one of several (``accelerate launch``, ``torchrun``).

    Raises:
        ConfigError: The device does not support the precision, or a tracker is unknown.
        MissingExtraError: A tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    check_trackers(settings.train.trackers)
    precision = settings.train.precision
    AcceleratorState._reset_state()  # otherwise a second run in this process would have the precision of the first
    try:
        return Accelerator(
            mixed_precision="no" if precision == "float32" else precision,
            log_with=list(settings.train.trackers) or None,
            project_dir=settings.output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
    except ValueError as error:
        raise ConfigError(
            f"setting 'train.precision' got '{precision}', which this device does not support ({error}); use 'auto'"
        ) from None


def training_device() -> torch.device:
    """Return the device that accelerate will choose, before `start_processes`."""
    from accelerate.utils import parse_flag_from_env

    return torch.device("cpu") if parse_flag_from_env("ACCELERATE_USE_CPU") else default_device()


def is_main_process() -> bool:
    """Return whether this is the main process of a run, before `start_processes`."""
    from accelerate.utils import get_int_from_env

    ranks = ["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"]  # as accelerate reads them
    return bool(get_int_from_env(ranks, 0) == 0)


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers are supported by accelerate and installed."""
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
    """Start the trackers and log the settings."""
    plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.flat().items()}
    accelerator.init_trackers("querybox", config=plain)


def evaluate_together(
    accelerator: Accelerator,
    data: DetectionData,
    detector: DetectionTransformer,
    settings: DataSettings,
    request: StopRequest,
) -> Evaluation | None:
    """Evaluate `detector` on `data`, with the images distributed over the processes.

    Args:
        accelerator: The accelerator of the run.
        data: The images and their objects.
        detector: The detector.
        settings: The fraction of the images that may be unreadable, and the tiles.
        request: The stop request, which is checked after every image.

    Returns:
        The evaluation of all images, in every process; None in every process if one of them received a stop request.
    """
    from accelerate.utils import gather_object

    def check_stop(_: Detections) -> None:
        if request.signal is not None:
            raise StopRequested

    engine = OptimizedModel(detector)
    own = data.images[accelerator.process_index :: accelerator.num_processes]
    detections: dict[int, Detections] = {}
    unreadable: dict[int, str] = {}
    for first in range(0, len(data.images[:: accelerator.num_processes]), ROUND):
        result: tuple[dict[int, Detections], dict[int, str]] = ({}, {})
        with suppress(StopRequested):
            result = detect_records(
                engine, own[first : first + ROUND], tiling=tiling_of(settings), callback=check_stop
            )
        results = gather_object([(result, request.signal is not None)])
        if any(stop for _, stop in results):
            return None
        for (found, errors), _ in results:
            detections |= found
            unreadable |= errors
    return measure(data, detections, unreadable, settings.max_corrupt)
