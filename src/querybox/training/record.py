"""Recording of facts about a run for `querybox.diagnosis`, by the main process."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from querybox.data import DetectionData
from querybox.data.tiled import tiled
from querybox.diagnosis.facts import EvaluationFacts, SplitFacts, describe_parts
from querybox.diagnosis.record import RECORD, add_to_record
from querybox.errors import DiskFullError, QueryboxError
from querybox.evaluation.result import Evaluation
from querybox.interrupt import StopRequest
from querybox.modules.detector import DetectionTransformer
from querybox.training.display import Display
from querybox.training.loop import Trainer
from querybox.training.processes import evaluate_together, translate_process_errors
from querybox.training.settings import RunSettings
from querybox.training.update import StopReason

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
    """Record the initial facts of a run, unless a resumed run has its record."""
    folder = settings.folder
    if (folder / RECORD).is_file():
        add_to_record(folder, ended=None, failed=False)
        return
    queries = settings.model["queries"]
    add_to_record(
        folder,
        training=SplitFacts.of(training, settings.data, queries),
        validation=None
        if validation is None
        else SplitFacts.of(tiled(validation, settings.data), settings.data, queries),
        parts=None if continued else describe_parts(detector),
    )


def evaluate_and_record(
    accelerator: Accelerator,
    settings: RunSettings,
    data: DetectionData,
    detector: DetectionTransformer,
    request: StopRequest,
) -> Evaluation | None:
    """Evaluate `detector` on `data` and record the facts about its predictions; None if a stop was requested."""
    evaluation = evaluate_together(accelerator, data, detector, settings.data, request)
    if evaluation is not None and accelerator.is_main_process:
        assert detector.recipe is not None
        facts = EvaluationFacts.of(
            data.only(evaluation.detections), evaluation, settings.data, detector.recipe.finest_stride
        )
        add_to_record(settings.folder, evaluation=facts)
    return evaluation


def fit_and_record(trainer: Trainer, display: Display, request: StopRequest) -> StopReason:
    """Train, and record why training ended.

    Raises:
        QueryboxError: Training failed; this is recorded as well.
    """
    try:
        with translate_process_errors():
            reason = trainer.fit(display, request)
    except QueryboxError as error:
        if trainer.accelerator.is_main_process:
            with suppress(DiskFullError):  # possibly the same error
                add_to_record(trainer.folder, ended=str(error), failed=True)
        raise
    if trainer.accelerator.is_main_process:
        add_to_record(trainer.folder, ended=reason)
    return reason
