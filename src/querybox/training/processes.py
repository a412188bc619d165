"""The processes of a run, their devices, precision and trackers: all that accelerate looks after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from querybox.data import DetectionData
from querybox.detections import Detections
from querybox.detector import Detector
from querybox.errors import ConfigError, MissingExtraError
from querybox.evaluate import detect_records, measure
from querybox.evaluation import Evaluation
from querybox.training.folder import flatten
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def start_processes(settings: RunSettings) -> Accelerator:
    """Return the accelerator of this process; one of several under ``accelerate launch`` or ``torchrun``.

    Raises:
        ConfigError: The device does not know the precision, or a tracker is unknown.
        MissingExtraError: A tracker is not installed.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    check_trackers(settings.train.trackers)
    AcceleratorState._reset_state()  # or a second run in this process could not have another precision
    try:
        return Accelerator(
            mixed_precision=settings.train.precision,
            log_with=list(settings.train.trackers) or None,
            project_dir=settings.output,
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
    plain = {
        k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flatten(settings).items()
    }
    accelerator.init_trackers("querybox", config=plain)


def evaluate_together(
    accelerator: Accelerator, data: DetectionData, detector: Detector, max_corrupt: float
) -> Evaluation:
    """Evaluate `detector` on `data`, each process detecting on its share of the images; all get the whole result."""
    from accelerate.utils import gather_object

    records = data.images[accelerator.process_index :: accelerator.num_processes]
    detections: dict[int, Detections] = {}
    unreadable: dict[int, str] = {}
    for found, lost in gather_object([detect_records(detector, records)]):
        detections |= found
        unreadable |= lost
    return measure(data, detections, unreadable, max_corrupt)
