"""The training loop: forward, losses, backward, clipping, optimizer step, EMA, evaluation and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from querybox.checkpoints import native
from querybox.checkpoints.blueprint import contents
from querybox.checkpoints.find import BEST, CHECKPOINT, LAST
from querybox.data import Batch
from querybox.data.loader import TrainLoader
from querybox.errors import NonFiniteError
from querybox.evaluation.result import Evaluation
from querybox.fast.memory import release_freed_memory
from querybox.fast.training import for_training
from querybox.interrupt import StopRequest
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch
from querybox.training.checkpoint import Progress, RunCheckpoint
from querybox.training.compiled import compile_backbone, compiler_errors
from querybox.training.display import Display
from querybox.training.ema import MovingAverage
from querybox.training.loss import DetectionLoss, object_counts
from querybox.training.metrics import as_row, write_metrics
from querybox.training.optim import Schedule, build_optimizer, freeze
from querybox.training.processes import next_batches, seed_step, synchronize_batch_norms
from querybox.training.settings import RunSettings
from querybox.training.unreadable import UnreadableImages
from querybox.training.update import StopReason, Update

if TYPE_CHECKING:
    from accelerate import Accelerator

MIN_CHECKPOINT_SECONDS = 60.0
"""No checkpoint is written after an epoch if the last one is more recent, because large ones take seconds to write."""
MAX_CHECKPOINT_SECONDS = 600.0
"""Within an epoch, a checkpoint is written if the last one is older."""
RELEASE_MEMORY_STEPS = 16
"""Number of updates after which unused memory is returned to the system."""


class Trainer:
    """Trains a detector until the last epoch, the end of patience or of the time limit, or a signal.

    Attributes:
        progress: The progress of the run.
        best: The best evaluation by this object; None before the first.
    """

    def __init__(
        self,
        detector: DetectionTransformer,
        criterion: nn.Module,
        loader: TrainLoader,
        run: RunSettings,
        *,
        accelerator: Accelerator,
        evaluate: Callable[[DetectionTransformer, StopRequest], Evaluation | None] | None = None,
    ) -> None:
        """Create the trainer.

        Args:
            detector: The detector, which is trained in place.
            criterion: Returns the weighted losses by name, from the detector's output and the targets.
            loader: Yields this process's part of every batch, in `settings.micro_batches` parts per update.
            run: Settings of the run; its folder must exist.
            accelerator: The accelerator of the run.
            evaluate: Evaluates a detector, or returns None if a stop was requested; called in every process. None to
                train without evaluation.

        Raises:
            ConfigError: ``train.freeze`` does not fit the detector, or the criterion has parameters to train.
            CheckpointError: The detector could not be saved; see `Detector.save`.
        """
        settings = run.train
        contents(detector, run.folder / LAST)  # raises its errors before the first step, not after an epoch
        freeze(detector, settings.freeze)
        # Channels last is the fastest memory format for convolutions, on CPUs and GPUs.
        self.detector = detector.to(accelerator.device).to(memory_format=torch.channels_last)
        self.run = run
        self.settings = settings
        self.loader = loader
        self.folder = run.folder
        self.accelerator = accelerator
        self.evaluate = evaluate
        self.unreadable = UnreadableImages(accelerator, self.folder, loader.dataset)
        self.average = MovingAverage(detector, settings.ema, settings.ema_warmup) if settings.ema else None
        self.adamw = build_optimizer(detector, settings)
        fast = for_training(detector)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            synchronize_batch_norms(fast)
        if settings.compile:
            compile_backbone(fast)
        self.model, self.optimizer = accelerator.prepare(DetectionLoss(fast, criterion), self.adamw)
        self.trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self.steps_per_epoch = math.ceil(len(loader) / settings.micro_batches)
        self.schedule = Schedule.of(settings, self.steps_per_epoch)
        self.progress = Progress()
        self.best: Evaluation | None = None
        self.started = time.perf_counter()
        self.saved_at = 0.0

    def fit(self, display: Display, request: StopRequest) -> StopReason:
        """Train, and return why training ended. After a ``"signal"`` there is no evaluation, to exit quickly."""
        progress = self.progress
        self.started = time.perf_counter() - progress.seconds
        self.saved_at = elapsed = progress.seconds
        stop = self.finished()
        while stop is None:
            self.restart_if_due(elapsed)
            for micro_batches in self.remaining_batches():
                progress.lr = self.schedule.apply(self.adamw, progress.step, elapsed)
                update = self.update(micro_batches, request)
                elapsed = update.seconds
                self.count(update)
                if progress.step % RELEASE_MEMORY_STEPS == 0:
                    release_freed_memory()
                self.accelerator.log(
                    {"lr": progress.lr, "grad_norm": update.grad_norm, **update.losses}, step=progress.step
                )
                display.step(progress, update.losses)
                if stop := update.stop:
                    break
                if self.seconds - self.saved_at > MAX_CHECKPOINT_SECONDS:
                    self.save()
            if stop != "signal":
                stop = self.end_epoch(display, request, stop)
            improved = progress.best_step == progress.step  # save it before later updates overwrite it
            if stop or improved or self.seconds - self.saved_at > MIN_CHECKPOINT_SECONDS:
                self.save()
        return stop

    def restart_if_due(self, elapsed: float) -> None:
        """Continue from the best average, with another decay, when strong augmentation has ended (D-FINE)."""
        progress, end = self.progress, self.run.data.strong_until
        if not self.average or not self.settings.ema_restart or end == 1:
            return
        if max(progress.epoch / self.settings.epochs, elapsed / self.schedule.max_seconds) < end:
            progress.restarted = False  # strong augmentation begins again if a resumed run has more epochs
            return
        if not progress.restarted:
            self.accelerator.wait_for_everyone()  # the main process may still be writing the file
            if progress.best_step is not None:
                self.average.restart(self.detector, self.folder / BEST)
            progress.restarted = True
        self.average.decay = self.settings.ema_restart

    def update(self, micro_batches: Sequence[Batch], request: StopRequest) -> Update:
        """Perform one update, accumulating the gradients of `micro_batches`.

        Raises:
            NonFiniteError: A loss or the gradient is NaN or infinite; the weights are not updated.
            TrainingError: Too many images have become unreadable.
        """
        self.seed_dropout()
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        counts = object_counts(micro_batches)
        for batch in micro_batches:
            last = batch is micro_batches[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.losses(batch, counts)
                self.accelerator.backward(sum(losses.values()))
            totals = {name: totals.get(name, 0) + loss.detach() for name, loss in losses.items()}
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.clip or math.inf)
        update = self.synchronize(totals, norm, micro_batches, request)
        if update.unreadable:
            self.unreadable.add([image for batch in micro_batches for image in batch.unreadable])
        self.require_finite(update, micro_batches)
        if not update.images:
            self.optimizer.zero_grad()  # gradients of None, so that AdamW does not move the weights
        self.optimizer.step()
        if self.average:
            self.average.update(self.detector, self.progress.step + 1)
        return update

    def losses(self, batch: Batch, counts: Sequence[int] | None) -> dict[str, Tensor]:
        """Move a batch to the device and return its losses; see `object_counts` for `counts`."""
        device = self.accelerator.device
        pixels, sizes = batch.pixels.to(device, non_blocking=True), batch.sizes.to(device, non_blocking=True)
        targets = [target.to(device, non_blocking=True) for target in batch.targets]
        images = ImageBatch.from_pixels(pixels, sizes, self.detector.preprocessing)
        torch.clear_autocast_cache()  # within an outer autocast it would still have the weights of earlier steps
        try:
            with compiler_errors() if self.settings.compile else nullcontext():
                losses: dict[str, Tensor] = self.model(
                    images, targets, object_counts=counts, placeholder=not batch.image_ids
                )
        except NonFiniteError as error:
            raise self.non_finite_error(str(error), batch.image_ids) from None
        return losses

    def synchronize(
        self, losses: dict[str, Tensor], norm: Tensor, micro_batches: Sequence[Batch], request: StopRequest
    ) -> Update:
        """Transfer the statistics of an update to the host, averaged over processes.

        Besides the matching, this is the only point in a step where the host waits for the device: the weights must not
        be updated before the gradient is known to be finite.
        """
        late = self.settings.max_time is not None and self.seconds > self.settings.max_time
        images = sum(len(batch.image_ids) for batch in micro_batches)
        unreadable = sum(len(batch.unreadable) for batch in micro_batches)
        own = [images, unreadable, self.seconds, request.signal is not None, late]
        numbers = torch.cat(
            [torch.stack([*losses.values(), norm]), torch.tensor(own).to(norm, non_blocking=True)]
        )
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers, "sum")
        *values, total_norm, total_images, total_unreadable, seconds, num_signalled, num_late = (
            numbers.tolist()
        )
        processes = self.accelerator.num_processes
        return Update(
            losses={name: value / processes for name, value in zip(losses, values, strict=True)},
            grad_norm=total_norm / processes,  # the same in every process
            images=round(total_images),
            unreadable=round(total_unreadable),
            seconds=seconds / processes,
            stop="signal" if num_signalled else "time" if num_late else None,
        )

    def require_finite(self, update: Update, micro_batches: Sequence[Batch]) -> None:
        """Raise NonFiniteError unless the losses and the gradient are finite.

        With fp16 an infinite gradient usually means that the loss scale is too high; the gradient scaler then skips the
        step and halves the scale. It is an error only at a scale of 1.
        """
        bad = [name for name, value in update.losses.items() if not math.isfinite(value)]
        scaler = self.accelerator.scaler
        if not math.isfinite(update.grad_norm) and (scaler is None or scaler.get_scale() <= 1):
            bad.append("the gradient")
        if bad:
            from accelerate.utils import gather_object

            images = gather_object([image_id for batch in micro_batches for image_id in batch.image_ids])
            raise self.non_finite_error(f"{', '.join(bad)} became NaN or infinite", images)

    def non_finite_error(self, what: str, image_ids: Sequence[int]) -> NonFiniteError:
        """Return the error that names the step and the images."""
        return NonFiniteError(
            f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: {what}, in the batch with "
            f"{self.loader.dataset.describe(image_ids)}; the weights were not updated. Check these images and their "
            "boxes, or lower 'train.lr' and 'train.clip', or set 'train.precision' to 'float32'"
        )

    def remaining_batches(self) -> Iterator[tuple[Batch, ...]]:
        """Yield the micro-batches of each remaining update of the current epoch."""
        progress, accumulate = self.progress, self.settings.micro_batches
        # More than there are if an earlier version made an update of images that are left over.
        if progress.epoch_steps >= self.steps_per_epoch:
            return
        self.model.train()
        sampler = self.loader.batch_sampler
        sampler.set_epoch(progress.epoch, skip=progress.epoch_steps * accumulate)
        sampler.set_time_share(progress.seconds / self.schedule.max_seconds)
        batches = chain(self.loader)  # starts its processes with the first batch
        while micro_batches := next_batches(batches, accumulate):
            yield micro_batches
            sampler.set_time_share(progress.seconds / self.schedule.max_seconds)

    def seed_dropout(self) -> None:
        """Seed the random numbers of a step, such as dropout; see `seed_step`."""
        seed_step(self.accelerator, self.settings.seed, self.progress.step)

    def count(self, update: Update) -> None:
        """Add an update to the progress and to the sums of the epoch."""
        progress = self.progress
        progress.step += 1
        progress.epoch_steps += 1
        now = self.seconds
        new = {
            **update.losses,
            "loss": sum(update.losses.values()),
            "grad_norm": update.grad_norm,
            "images": update.images,
            "seconds": now - progress.seconds,
        }
        progress.seconds = now
        progress.epoch_sums = {
            name: progress.epoch_sums.get(name, 0.0) + value for name, value in new.items()
        }

    def end_epoch(self, display: Display, request: StopRequest, stop: StopReason | None) -> StopReason | None:
        """Evaluate if due, write the row of metrics, and start the next epoch if this one is complete.

        Returns:
            Why training ends, or None if it continues. After a ``"signal"`` the epoch is not complete: its evaluation
            is still due.
        """
        progress, settings = self.progress, self.settings
        epoch = progress.epoch + 1
        due = stop is not None or epoch % settings.evaluate_every == 0 or epoch == settings.epochs
        results = self.measure(display, request) if due and self.evaluate is not None else {}
        if results is None:
            return "signal"
        progress.seconds, progress.time_up = self.seconds, stop == "time"
        sums, steps = progress.epoch_sums, progress.epoch_steps
        losses = {name: total / steps for name, total in sums.items() if "loss" in name}
        row = {
            "epoch": epoch,
            "step": progress.step,
            "lr": progress.lr,
            "loss": losses.pop("loss"),
            **losses,
            "grad_norm": sums["grad_norm"] / steps,
            "images_per_second": sums["images"] / sums["seconds"],
            "seconds": progress.seconds,
            **results,
        }
        progress.rows = [*progress.rows[: progress.epoch], as_row(row)]
        if self.accelerator.is_main_process:
            write_metrics(self.folder, progress.rows)
        self.accelerator.log(results, step=progress.step)
        display.epoch(progress, row["loss"], results)
        if steps >= self.steps_per_epoch:
            progress.epoch, progress.epoch_steps, progress.epoch_sums = epoch, 0, {}
        return stop or self.finished()

    def measure(self, display: Display, request: StopRequest) -> dict[str, float] | None:
        """Evaluate the detector, record whether it is the best so far, and return its metrics; None if stopped."""
        assert self.evaluate is not None
        progress = self.progress
        display.evaluating(progress)
        evaluation = self.evaluate(self.current_detector, request)
        if evaluation is None:
            return None
        progress.evaluations_since_best += 1
        if progress.best is None or evaluation.metrics["AP"] > progress.best:
            progress.best, progress.best_step = evaluation.metrics["AP"], progress.step
            progress.evaluations_since_best, self.best = 0, evaluation
        return dict(evaluation.metrics)

    def finished(self) -> StopReason | None:
        """Return why training is finished, or None if it is not."""
        progress, patience = self.progress, self.settings.patience
        if progress.epoch >= self.settings.epochs:
            return "epochs"
        if progress.time_up and progress.seconds > self.schedule.max_seconds:
            return "time"
        return "patience" if patience and progress.evaluations_since_best >= patience else None

    @property
    def current_detector(self) -> DetectionTransformer:
        """The detector that is evaluated and saved: the moving average if there is one."""
        return self.average.model if self.average else self.detector

    @property
    def seconds(self) -> float:
        """Duration of the run in seconds, including the parts before resuming."""
        return time.perf_counter() - self.started

    def save(self) -> None:
        """Write the checkpoint, then the detectors."""
        if not self.accelerator.is_main_process:
            return
        self.progress.seconds = self.saved_at = self.seconds
        scaler = self.accelerator.scaler
        RunCheckpoint.of(
            self.progress,
            self.detector,
            self.adamw,
            average=self.average.model if self.average else None,
            scaler=scaler.state_dict() if scaler else None,
            settings=self.run.flat(),
        ).write(self.folder / CHECKPOINT)
        self.write_detectors()

    def write_detectors(self) -> None:
        """Write ``last.safetensors``, and ``best.safetensors`` if the current detector is the best so far."""
        content = contents(self.current_detector, self.folder / LAST)
        native.write(self.folder / LAST, *content)
        if self.progress.best_step == self.progress.step:
            native.write(self.folder / BEST, *content)

    def resume(self, checkpoint: RunCheckpoint) -> None:
        """Resume from a checkpoint.

        Raises:
            CheckpointError: The checkpoint is that of another model.
        """
        average = self.average.model if self.average else None
        checkpoint.restore(self.detector, self.adamw, average=average)
        self.progress = checkpoint.progress
        self.unreadable.resume()
        if checkpoint.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)

    def rewrite_outputs(self) -> None:
        """Rewrite detectors and metrics from the checkpoint, because a crash may have left older or newer ones."""
        self.write_detectors()
        write_metrics(self.folder, self.progress.rows)
