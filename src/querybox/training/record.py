"""What a run writes down of itself for `querybox.diagnosis`; the first process does it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.data import DetectionData
from querybox.diagnosis.facts import EvaluationFacts, SplitFacts, describe_parts
from querybox.diagnosis.record import RECORD, add_to_record
from querybox.errors import DiskFullError, QueryboxError
from querybox.evaluation.result import Evaluation
from querybox.modules.detector import DetectionTransformer
from querybox.training.display import Display
from querybox.training.interrupt import StopRequest
from querybox.training.loop import StopReason, Trainer
from querybox.training.processes import evaluate_together, named_deaths
from querybox.training.settings import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def record_start(
    settings: RunSettings,
    detector: DetectionTransformer,
    training: DetectionData,
    validation: DetectionData | None,
    *,
    continued: bool,
) -> None:
    """Write down what the run starts from; a run that goes on has done so, unless somebody removed the file."""
    folder = Path(settings.output)
    if (folder / RECORD).is_file():
        add_to_record(folder, ended=None, failed=False)
        return
    queries = settings.model["queries"]
    add_to_record(
        folder,
        training=SplitFacts.of(training, settings.data, queries),
        validation=None if validation is None else SplitFacts.of(validation, settings.data, queries),
        parts=None if continued else describe_parts(detector),
    )


def evaluate_and_record(
    accelerator: Accelerator,
    settings: RunSettings,
    data: DetectionData,
    detector: DetectionTransformer,
    request: StopRequest,
) -> Evaluation | None:
    """Evaluate `detector` on `data`, and write down what it answers like; None if it was stopped."""
    evaluation = evaluate_together(accelerator, data, detector, settings.data.max_corrupt, request)
    if evaluation is not None and accelerator.is_main_process:
        assert detector.recipe is not None
        facts = EvaluationFacts.of(
            data.only(evaluation.detections), evaluation, settings.data, detector.recipe.finest_stride
        )
        add_to_record(Path(settings.output), evaluation=facts)
    return evaluation


def fit_and_record(trainer: Trainer, display: Display, request: StopRequest) -> StopReason:
    """Train, and write down why it ended.

    Raises:
        QueryboxError: Training could not go on; that is written down, too.
    """
    try:
        with named_deaths():
            reason = trainer.fit(display, request)
    except QueryboxError as error:
        if trainer.accelerator.is_main_process:
            with suppress(DiskFullError):  # may be the very error
                add_to_record(trainer.folder, ended=str(error), failed=True)
        raise
    if trainer.accelerator.is_main_process:
        add_to_record(trainer.folder, ended=reason)
    return reason
