"""A whole run, from settings to a trained detector in a folder that tells how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from querybox.checkpoints.find import BEST, LAST
from querybox.data import DetectionData, train_loader
from querybox.detector import Detector
from querybox.fast.memory import freed_memory_kept
from querybox.html import render
from querybox.report import write_report
from querybox.training.data import read_data
from querybox.training.display import Display
from querybox.training.environment import write_environment
from querybox.training.folder import check_folder, prepare_folder
from querybox.training.interrupt import StopRequest
from querybox.training.loop import StopReason, Trainer
from querybox.training.processes import evaluate_together, named_deaths, start_processes, start_trackers
from querybox.training.record import evaluate_and_record, fit_and_record, record_start
from querybox.training.settings import RunSettings
from querybox.training.start import build_detector, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run ended with."""

    run_dir: Path
    """Its folder: weights, metrics, settings, environment, record, report."""
    detector: Detector
    """The best one of all evaluations; the last one if none was made."""
    metrics: Mapping[str, float]
    """Its COCO numbers on the validation data; empty if there are none."""

    def _repr_html_(self) -> str:
        """Show the run's folder and its metrics in Jupyter."""
        return render("notebook/training.html", result=self)


@named_deaths()
def train(settings: RunSettings, *, resume: bool = False) -> TrainResult:
    """Train a detector and leave everything about it in the run folder.

    Under ``accelerate launch`` or ``torchrun`` every process calls this alike.

    Args:
        settings: What to train, on what, how, and where to put it.
        resume: Go on with the run in the folder, exactly where it was left.

    Raises:
        ConfigError: Settings do not fit each other, the data, or the run to be resumed; or the folder is in use.
        DataError: A dataset cannot be read or has nothing to learn.
        CheckpointError: Weights or the checkpoint cannot be read or do not fit.
        MissingExtraError: A tracker is not installed.
        NonFiniteError: A loss or gradient became NaN or infinite; the last checkpoint is in the folder.
        DiskFullError: There is no room for a file; so it is after the next two.
        ProcessError: Another process of the training ended or does not answer.
        WorkerError: A process that loads images ended.
        KeyboardInterrupt: Ctrl-C came; the checkpoint has been written.
        SystemExit: SIGTERM came; the checkpoint has been written.
    """
    settings = resolve(settings)
    checkpoint = check_folder(settings, resume=resume)
    continued = checkpoint is not None
    accelerator = start_processes(settings)
    data = read_data(settings, accelerator, resume=resume)
    training, validation = data.training, data.validation
    torch.manual_seed(settings.train.seed)
    detector = build_detector(settings, training.categories)
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    loader = train_loader(
        training,
        settings.data,
        batch_size=settings.train.batch_size // settings.train.accumulate,
        seed=settings.train.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    measure = None if validation is None else partial(evaluate_and_record, accelerator, settings, validation)
    trainer = Trainer(detector, criterion, loader, settings, accelerator=accelerator, evaluate=measure)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        del checkpoint  # as large as the model and its optimizer
    accelerator.wait_for_everyone()  # all have looked into the folder before it is written to
    if accelerator.is_main_process:
        prepare_folder(settings, continued=continued)
        data.write(trainer.folder)
        write_environment(trainer.folder / "environment.json", accelerator.num_processes)
        record_start(settings, detector, training, validation, continued=continued)
        if continued:
            trainer.repair()
    start_trackers(accelerator, settings)

    console = Console(stderr=True) if accelerator.is_main_process else None
    display = Display(
        console, settings.train, steps_per_epoch=trainer.steps_per_epoch, done=trainer.progress.step
    )
    with StopRequest() as request, display, freed_memory_kept():
        reason = fit_and_record(trainer, display, request)
    if reason == "signal":
        accelerator.end_training()
        request.reraise()

    accelerator.wait_for_everyone()  # the first process has written the weights
    result = conclude(trainer, validation, display, reason)
    accelerator.end_training()
    return result


def conclude(
    trainer: Trainer, validation: DetectionData | None, display: Display, reason: StopReason
) -> TrainResult:
    """Load the best detector, and report on it where there is something to measure it on."""
    folder, accelerator = trainer.folder, trainer.accelerator
    best = folder / (LAST if trainer.progress.best is None else BEST)
    detector = Detector.load(best)
    display.say(f"stopped after {trainer.progress.step} steps ({reason}); the detector is {best}")
    if validation is None:
        return TrainResult(run_dir=folder, detector=detector, metrics={})
    evaluation = trainer.best  # none in a run that was resumed and found no better one
    if evaluation is None:
        most = trainer.run.data.max_corrupt
        detector.to(accelerator.device)
        evaluation = evaluate_together(accelerator, validation, detector, most, StopRequest())
    assert evaluation is not None  # nobody asked to stop
    if accelerator.is_main_process:
        display.say(f"report: {write_report(folder, evaluation, validation)}")
    return TrainResult(run_dir=folder, detector=detector.cpu(), metrics=evaluation.metrics)
