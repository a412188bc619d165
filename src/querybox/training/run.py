"""A training run, from settings to a folder with the trained detector."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from querybox.checkpoints.find import BEST, LAST
from querybox.data import DetectionData, train_loader
from querybox.data.loader import TrainLoader
from querybox.data.phases import describe_change
from querybox.data.tiled import describe_tiles, tiled, with_whole_images
from querybox.detector import Detector
from querybox.fast.memory import retain_freed_memory
from querybox.html import metric, render
from querybox.interrupt import StopRequest
from querybox.machine import refuse_import_by_child
from querybox.modules.detector import DetectionTransformer
from querybox.report import write_report
from querybox.text import listed
from querybox.training.auto import choose, is_auto, is_measured, with_measured_batches, with_values_of_run
from querybox.training.checkpoint import RunCheckpoint
from querybox.training.data import Splits, check_masks, check_splits, read_splits
from querybox.training.depth import with_depth
from querybox.training.display import Display, main_console, open_console, print_lines
from querybox.training.environment import write_environment
from querybox.training.folder import check_folder, prepare_folder
from querybox.training.lock import folder_lock
from querybox.training.loop import Trainer
from querybox.training.micro_batches import with_micro_batches
from querybox.training.object_sides import with_object_sides
from querybox.training.optim import Schedule, describe_rise, keep_milestones, schedule_warnings
from querybox.training.overrides import read_settings, with_transform
from querybox.training.processes import (
    evaluate_together,
    is_main_process,
    start_processes,
    start_trackers,
    training_device,
    translate_process_errors,
)
from querybox.training.record import evaluate_and_record, fit_and_record, record_start
from querybox.training.resources import Resources
from querybox.training.settings import Given, RunSettings
from querybox.training.shuffling import with_row_groups
from querybox.training.start import build_detector, check_effect, locate, resolve
from querybox.training.update import StopReason
from querybox.urls import public_name

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a training run."""

    run_dir: Path
    """The run folder: weights, metrics, settings, environment, record, report."""
    detector: Detector
    """The detector with the best AP, or the last one if there were no evaluations."""
    metrics: Mapping[str, float]
    """COCO metrics of the detector on the validation data; empty if there are none."""

    def __repr__(self) -> str:
        """Return, for example, ``TrainResult('runs/photos': AP 0.616, AP50 0.902)``."""
        values = [f"{name} {metric(self.metrics[name])}" for name in ("AP", "AP50") if name in self.metrics]
        return f"TrainResult({str(self.run_dir)!r}: {listed(values) if values else 'not evaluated'})"

    def _repr_html_(self) -> str:
        """Show the run's folder and its metrics in Jupyter."""
        return render("notebook/training.html", result=self)


def train(
    target: RunSettings | str | Path,
    *,
    resume: bool = False,
    transform: Callable[..., Any] | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train a detector, and write weights, metrics and a report to the run folder.

        querybox.train("photos", recipe="dino_small", max_time="10m")

    Under ``accelerate launch`` or ``torchrun`` every process calls this function.

    Args:
        target: The path of a dataset or of a run file, or settings.
        resume: Resume the run in the folder.
        transform: Applied to every training image before the augmentation of the settings: a transform of
            `torchvision.transforms.v2` or a Compose of Albumentations; see docs/guides/augmentation.md. A resumed run
            needs the same one.
        overrides: Settings to change, with the same names as on the command line: the last part of a name, such as
            ``epochs=5`` or ``output="runs/first"``, or the name in full, ``**{"train.epochs": 5}``.

    Raises:
        ConfigError: A setting is unknown or invalid; settings are inconsistent with each other, the data, or the run to
            resume; or the folder is in use, possibly by another process.
        DataError: A dataset cannot be read or has no objects.
        CheckpointError: Weights or the checkpoint cannot be read or do not fit the model.
        MissingExtraError: A tracker is not installed.
        NonFiniteError: A loss or gradient is NaN or infinite. Here and below, the run can be resumed from its last
            checkpoint.
        DiskFullError: There is no space to write a file.
        OutOfMemoryError: There is not enough memory.
        ProcessError: Another training process exited or does not respond.
        WorkerError: A process that loads images exited.
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM or SIGHUP was received.
    """
    return train_given(read_settings(target, overrides, where="train"), transform, resume=resume)


@translate_process_errors()
def train_given(
    given: Given, transform: Callable[..., Any] | None = None, *, resume: bool = False
) -> TrainResult:
    """Train as `train` does, with settings that were read from elsewhere."""
    refuse_import_by_child("train")
    settings = with_transform(given.settings, transform)
    print_lines(main_console(), f"reading {public_name(str(settings.data.train))}")
    settings = locate(settings, resume=resume)
    locks = is_main_process() and (settings.folder.is_dir() or not resume)
    # A run computes gradients, also where its caller has disabled them, and in its own precision.
    with (
        folder_lock(settings.folder) if locks else nullcontext(),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(training_device().type, enabled=False),
    ):
        return run(dataclasses.replace(given, settings=settings), transform, resume=resume)


def run(given: Given, transform: Callable[..., Any] | None, *, resume: bool) -> TrainResult:
    """Train as `train` does, in a folder that no other process uses."""
    settings, checkpoint, splits, notes = prepare(given, resume=resume)
    continued = checkpoint is not None
    accelerator = start_processes(settings)
    console = open_console() if accelerator.is_main_process else None
    print_lines(None if continued else console, notes, f"checking {splits.num_images:,} images")
    data = check_splits(splits, settings, accelerator, resume=resume)
    training, validation = tiled(data.training, settings.data), data.validation
    settings, note = with_depth(settings, training, data.deep)
    settings, shuffling = with_row_groups(settings, data.training)
    torch.manual_seed(settings.train.seed)
    print_lines(console, note, shuffling, f"loading weights: {settings.initial_weights}")
    detector = build_detector(settings, training.categories)
    detector.preprocessing = with_object_sides(detector.preprocessing, training)
    assert detector.recipe is not None
    criterion = detector.recipe.criterion()
    views = with_whole_images(training, data.training, settings.data)
    settings, note = with_micro_batches(settings, views, detector, criterion, accelerator)
    print_lines(console, note, describe_tiles(views, data.training, settings.data))
    loader = build_loader(settings, views, detector, accelerator, transform)
    measure = None if validation is None else partial(evaluate_and_record, accelerator, settings, validation)
    trainer = Trainer(detector, criterion, loader, settings, accelerator=accelerator, evaluate=measure)
    print_lines(console, *schedule_warnings(trainer.schedule, settings.train))
    if checkpoint is not None:
        trainer.resume(checkpoint)
        if trainer.finished() is None:
            print_lines(console, *describe_changes(trainer, checkpoint.settings))
        del checkpoint  # frees memory of the size of the model and the optimizer
    accelerator.wait_for_everyone()  # all processes have checked the folder before it is written to
    if accelerator.is_main_process:
        prepare_folder(settings, continued=continued)
        data.write(trainer.folder)
        write_environment(trainer.folder, accelerator.num_processes)
        record_start(settings, detector, training, validation, continued=continued)
        if continued:
            trainer.rewrite_outputs()
    start_trackers(accelerator, settings)

    display = Display(
        console, settings.train, steps_per_epoch=trainer.steps_per_epoch, done=trainer.progress.step
    )
    with StopRequest() as request, display, retain_freed_memory():
        reason = fit_and_record(trainer, display, request)
    if reason == "signal":
        accelerator.end_training()
        request.reraise()

    result = finish(trainer, validation, display, reason)
    accelerator.end_training()
    return result


def prepare(given: Given, *, resume: bool) -> tuple[RunSettings, RunCheckpoint | None, Splits, str]:
    """Complete the settings of a run, after reading its data if they depend on it.

    Returns:
        The settings, the checkpoint to resume from, the data, whose images have not been checked, and lines that say
        what was decided and why.

    Raises:
        ConfigError: Settings are inconsistent, or some that the user has written have no effect.
    """
    settings = with_values_of_run(given.settings) if resume else given.settings
    if not is_auto(settings):
        measured = is_measured(settings)
        settings = resolve(settings)
        check_effect(given, settings, resume=resume)
        if measured:
            settings = with_measured_batches(settings, Resources.here())
    checkpoint = check_folder(settings, resume=resume)
    if checkpoint is not None:
        settings = keep_milestones(settings, checkpoint.settings, checkpoint.progress.epoch)
    splits = read_splits(settings, resume=resume, written=given.written(resume=resume))
    notes = [splits.describe(settings)]
    if is_auto(settings):
        choice = choose(settings, tiled(splits.training, settings.data), Resources.here())
        if choice.settings != settings:  # a run that is repeated has its choices
            notes.append(choice.describe())
        settings = resolve(choice.settings)
        check_effect(given, settings, resume=resume)
    check_masks(splits.training, settings, given.written(resume=resume))
    return settings, checkpoint, splits, "\n".join(filter(None, notes))


def build_loader(
    settings: RunSettings,
    data: DetectionData,
    detector: DetectionTransformer,
    accelerator: Accelerator,
    transform: Callable[..., Any] | None,
) -> TrainLoader:
    """Return the loader of this process's part of every training batch.

    Raises:
        ConfigError: The transform cannot be used.
    """
    loader = train_loader(
        data,
        settings.data,
        batch_size=settings.train.batch_size,
        parts=settings.train.micro_batches,
        seed=settings.train.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        epochs=settings.train.epochs,
        fill=detector.preprocessing.mean,
        transform=transform,
        masks=detector.mask_head is not None,
    )
    if transform is not None:
        loader.dataset[0, 0]  # raises its errors before the run begins
    return loader


def describe_changes(trainer: Trainer, old: Mapping[str, Any]) -> tuple[str, str]:
    """Return what changes in a resumed run because it ends at another time, one line each; empty if nothing does.

    Args:
        trainer: The trainer, with the progress of the run.
        old: The settings of the run so far, by dotted name.
    """
    progress, schedule, settings = trainer.progress, trainer.schedule, trainer.settings
    length = {name: old[f"train.{name}"] for name in ("epochs", "max_time")}
    planned = Schedule.of(settings.replace(**length), trainer.steps_per_epoch)
    before, now = (each.share(progress.step, progress.seconds) for each in (planned, schedule))
    return (
        describe_rise(schedule, trainer.adamw.param_groups[0]["initial_lr"], progress),
        describe_change(trainer.run.data, before, now),
    )


def finish(
    trainer: Trainer, validation: DetectionData | None, display: Display, reason: StopReason
) -> TrainResult:
    """Load the best detector, and write the report if there is validation data."""
    folder, accelerator = trainer.folder, trainer.accelerator
    accelerator.wait_for_everyone()  # the main process has written the weights
    best = folder / (LAST if trainer.progress.best is None else BEST)
    detector = Detector.load(best)
    if trainer.progress.step == display.done:
        setting = "max_time" if reason == "time" else reason
        display.print_line(
            f"the run had ended ({reason}): to continue it, resume with a larger train.{setting}"
        )
    display.print_line(f"stopped after {trainer.progress.step} steps ({reason}); the detector is {best}")
    if validation is None:
        return TrainResult(run_dir=folder, detector=detector, metrics={})
    evaluation = trainer.best  # None if a resumed run did not improve
    if evaluation is None:
        detector.to(accelerator.device)
        evaluation = evaluate_together(accelerator, validation, detector, trainer.run.data, StopRequest())
    assert evaluation is not None  # no stop was requested
    if accelerator.is_main_process:
        display.print_line(f"report: {write_report(folder, evaluation, validation)}")
    return TrainResult(run_dir=folder, detector=detector.cpu(), metrics=evaluation.metrics)
