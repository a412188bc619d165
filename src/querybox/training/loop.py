"""The training loop: forward, losses, backward, clip, step, average - and around it what an epoch's end asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from querybox.checkpoints.blueprint import save
from querybox.checkpoints.find import BEST, LAST
from querybox.data import Batch
from querybox.data.loader import TrainLoader
from querybox.errors import NonFiniteError
from querybox.evaluation.result import Evaluation
from querybox.fast.memory import release_freed_memory
from querybox.fast.training import for_training
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch
from querybox.training.checkpoint import Checkpoint, Progress
from querybox.training.compiled import compile_backbone, compiler_errors
from querybox.training.display import Display
from querybox.training.ema import MovingAverage
from querybox.training.folder import CHECKPOINT, METRICS
from querybox.training.interrupt import StopRequest
from querybox.training.loss import DetectionLoss
from querybox.training.metrics import as_row, write_metrics
from querybox.training.optim import Schedule, build_optimizer, freeze
from querybox.training.processes import take
from querybox.training.settings import RunSettings
from querybox.training.unreadable import UnreadableImages

if TYPE_CHECKING:
    from accelerate import Accelerator

StopReason = Literal["epochs", "patience", "time", "signal"]

SAVE_SECONDS = 60.0
"""Epochs that end sooner than this after the last checkpoint go without: writing it takes seconds for a large model."""
RELEASE_STEPS = 16
"""Updates after which memory that was kept and is not in use goes back to the system."""
LONG_SECONDS = 600.0
"""Within an epoch, a checkpoint is written after this long without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one update was like, over all processes."""

    losses: dict[str, float]
    """By name, weighted; the mean over processes and parts."""
    grad_norm: float
    """Of all trained parameters together, before clipping."""
    images: int
    unreadable: int
    """Number of images that could not be read."""
    seconds: float
    """Of the run so far; the same in every process, so that their learning rates are."""
    stop: StopReason | None
    """Set when some process was asked to stop or ran out of time."""


class Trainer:
    """One run: trains until its epochs, its patience or its time are used up, or a signal asks it to stop.

    Attributes:
        progress: How far the run has come.
        best: The best evaluation of this object's lifetime; None before the first.
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
        """Set up a run.

        Args:
            detector: To be trained, in place.
            criterion: Returns the weighted losses by name, from the detector's output and the targets.
            loader: This process's share of every batch; an update takes `settings.accumulate` of them.
            run: How to train, and the folder where checkpoints and ``metrics.csv`` go; it exists.
            accelerator: The processes, their devices and their precision.
            evaluate: Measures a detector, or returns None because a stop was asked for; called in every process. None
                trains without evaluation.

        Raises:
            ConfigError: ``train.freeze`` does not fit the detector.
        """
        settings = run.train
        freeze(detector, settings.freeze)
        # Channels last: the order in which CPUs and GPUs compute convolutions fastest.
        self.detector = detector.to(accelerator.device).to(memory_format=torch.channels_last)
        self.run = run
        self.settings = settings
        self.loader = loader
        self.folder = Path(run.output)
        self.accelerator = accelerator
        self.evaluate = evaluate
        self.unreadable = UnreadableImages(accelerator, self.folder, loader.dataset)
        self.average = MovingAverage(detector, settings.ema) if settings.ema else None
        self.adamw = build_optimizer(detector, settings)
        fast = for_training(detector)
        if settings.compile:
            compile_backbone(fast)
        self.model, self.optimizer = accelerator.prepare(DetectionLoss(fast, criterion), self.adamw)
        self.trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
        self.steps_per_epoch = math.ceil(len(loader) / settings.accumulate)
        self.schedule = Schedule.of(settings, self.steps_per_epoch)
        self.progress = Progress()
        self.best: Evaluation | None = None
        self.started = time.perf_counter()
        self.saved_at = 0.0

    def fit(self, display: Display, request: StopRequest) -> StopReason:
        """Train, and say why it ended. After a ``"signal"`` nothing is evaluated, so that the program ends soon."""
        progress = self.progress
        self.started = time.perf_counter() - progress.seconds
        self.saved_at = elapsed = progress.seconds
        stop = self.finished()
        while stop is None:
            for parts in self.rest_of_epoch():
                progress.lr = self.schedule.apply(self.adamw, progress.step, elapsed)
                update = self.update(parts, request)
                elapsed = update.seconds
                self.count(update)
                if progress.step % RELEASE_STEPS == 0:
                    release_freed_memory()
                self.accelerator.log(
                    {"lr": progress.lr, "grad_norm": update.grad_norm, **update.losses}, step=progress.step
                )
                display.step(progress, update.losses, progress.lr)
                if stop := update.stop:
                    break
                if self.seconds - self.saved_at > LONG_SECONDS:
                    self.save()
            if stop != "signal":
                stop = self.end_epoch(display, request, stop)
            improved = progress.best_step == progress.step  # and written down before anything overwrites it
            if stop or improved or self.seconds - self.saved_at > SAVE_SECONDS:
                self.save()
        return stop

    def update(self, parts: Sequence[Batch], request: StopRequest) -> Update:
        """Make one update from a batch that comes in `parts`.

        Raises:
            NonFiniteError: A loss or the gradient is NaN or infinite; the weights are still the last good ones.
            TrainingError: Too many images cannot be read any more.
        """
        self.seed_dropout()
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for part in parts:
            last = part is parts[-1]
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self.losses(part)
                self.accelerator.backward(sum(losses.values()) / len(parts))
            totals = {name: totals.get(name, 0) + loss.detach() / len(parts) for name, loss in losses.items()}
        norm = self.accelerator.clip_grad_norm_(self.trained, self.settings.clip or math.inf)
        update = self.agree(totals, norm, parts, request)
        if update.unreadable:
            self.unreadable.add([image for part in parts for image in part.unreadable])
        self.require_finite(update, parts)
        if not update.images:
            self.optimizer.zero_grad()  # or AdamW would go on as before
        self.optimizer.step()
        if self.average:
            self.average.update(self.detector, self.progress.step + 1)
        return update

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Bring a batch to the device and return its losses."""
        device = self.accelerator.device
        pixels, sizes = part.pixels.to(device, non_blocking=True), part.sizes.to(device, non_blocking=True)
        targets = [target.to(device, non_blocking=True) for target in part.targets]
        batch = ImageBatch.from_pixels(pixels, sizes, self.detector.preprocessing)
        try:
            with compiler_errors() if self.settings.compile else nullcontext():
                losses: dict[str, Tensor] = self.model(batch, targets, placeholder=not part.image_ids)
        except NonFiniteError as error:
            raise self.non_finite(str(error), part.image_ids) from None
        return losses

    def agree(
        self, losses: dict[str, Tensor], norm: Tensor, parts: Sequence[Batch], request: StopRequest
    ) -> Update:
        """Bring the numbers of an update to the host, the same in every process.

        This is the one moment of a step when the device is waited for, beside the matching: nothing may be updated
        before the gradient is known to be finite.
        """
        late = self.settings.max_time is not None and self.seconds > self.settings.max_time
        images, unreadable = (
            sum(len(part.image_ids) for part in parts),
            sum(len(part.unreadable) for part in parts),
        )
        own = [images, unreadable, self.seconds, request.signal is not None, late]
        numbers = torch.cat(
            [torch.stack([*losses.values(), norm]), torch.tensor(own).to(norm, non_blocking=True)]
        )
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers, "sum")
        *values, total_norm, total_images, total_unreadable, seconds, signalled, late_ones = numbers.tolist()
        processes = self.accelerator.num_processes
        return Update(
            losses={name: value / processes for name, value in zip(losses, values, strict=True)},
            grad_norm=total_norm / processes,  # it is the same in each
            images=round(total_images),
            unreadable=round(total_unreadable),
            seconds=seconds / processes,
            stop="signal" if signalled else "time" if late_ones else None,
        )

    def require_finite(self, update: Update, parts: Sequence[Batch]) -> None:
        """Raise NonFiniteError unless all of the update's numbers are finite.

        With fp16 an infinite gradient is the usual sign that the loss was scaled up too far: the scaler then skips
        the step and scales by half. Only when nothing is left to halve, the gradient itself is at fault.
        """
        bad = [name for name, value in update.losses.items() if not math.isfinite(value)]
        scaler = self.accelerator.scaler
        if not math.isfinite(update.grad_norm) and (scaler is None or scaler.get_scale() <= 1):
            bad.append("the gradient")
        if bad:
            from accelerate.utils import gather_object

            images = gather_object([image_id for part in parts for image_id in part.image_ids])
            raise self.non_finite(f"{', '.join(bad)} became NaN or infinite", images)

    def non_finite(self, what: str, image_ids: Sequence[int]) -> NonFiniteError:
        """Return the error that names the step and the images."""
        return NonFiniteError(
            f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: {what}, in the batch of the images with "
            f"ids {', '.join(map(str, image_ids))}; nothing was updated. Look at these images and their boxes, "
            "or lower 'train.lr' and 'train.clip', or train with precision 'no'"
        )

    def rest_of_epoch(self) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of the updates that the present epoch still lacks, each in its accumulated parts."""
        progress, accumulate = self.progress, self.settings.accumulate
        if progress.epoch_steps == self.steps_per_epoch:
            return
        self.model.train()
        self.loader.batch_sampler.set_epoch(progress.epoch, skip=progress.epoch_steps * accumulate)
        batches = iter(self.loader)
        while parts := take(batches, accumulate):
            yield parts

    def seed_dropout(self) -> None:
        """Make what dropout draws in a step depend on nothing but the seed, the step and the process."""
        key = (self.settings.seed, self.progress.step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))

    def count(self, update: Update) -> None:
        """Add an update to the progress and to the sums of its epoch."""
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
        """Evaluate if it is time to, write the epoch's row, and go on to the next epoch if this one is complete.

        Returns:
            Why the run ends, if it does. After a ``"signal"`` the epoch has not ended: its evaluation is still due.
        """
        progress, settings = self.progress, self.settings
        epoch = progress.epoch + 1
        due = stop is not None or epoch % settings.evaluate_every == 0 or epoch == settings.epochs
        results = self.measure(request) if due and self.evaluate is not None else {}
        if results is None:
            return "signal"
        progress.seconds = self.seconds
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
            write_metrics(self.folder / METRICS, progress.rows)
        self.accelerator.log(results, step=progress.step)
        display.epoch(progress, row["loss"], results)
        if steps == self.steps_per_epoch:
            progress.epoch, progress.epoch_steps, progress.epoch_sums = epoch, 0, {}
        return stop or self.finished()

    def measure(self, request: StopRequest) -> dict[str, float] | None:
        """Evaluate, note whether the detector is the best so far, and return its metrics; None where it was stopped."""
        assert self.evaluate is not None
        progress = self.progress
        evaluation = self.evaluate(self.current, request)
        if evaluation is None:
            return None
        progress.evaluations_since_best += 1
        if progress.best is None or evaluation.metrics["AP"] > progress.best:
            progress.best, progress.best_step = evaluation.metrics["AP"], progress.step
            progress.evaluations_since_best, self.best = 0, evaluation
        return dict(evaluation.metrics)

    def finished(self) -> StopReason | None:
        """Return why there is nothing left to do, or None."""
        if self.progress.epoch >= self.settings.epochs:
            return "epochs"
        patience = self.settings.patience
        return "patience" if patience and self.progress.evaluations_since_best >= patience else None

    @property
    def current(self) -> DetectionTransformer:
        """The detector as it stands: the moving average if one is kept."""
        return self.average.model if self.average else self.detector

    @property
    def seconds(self) -> float:
        """Time spent on the run, earlier parts of a resumed run included."""
        return time.perf_counter() - self.started

    def save(self) -> None:
        """Write the checkpoint, from which a run goes on, then what follows from it."""
        if not self.accelerator.is_main_process:
            return
        self.progress.seconds = self.saved_at = self.seconds
        scaler = self.accelerator.scaler
        Checkpoint.of(
            self.progress,
            self.detector,
            self.adamw,
            average=self.average.model if self.average else None,
            scaler=scaler.state_dict() if scaler else None,
            settings=self.run.flat(),
        ).write(self.folder / CHECKPOINT)
        self.write_detectors()

    def write_detectors(self) -> None:
        """Write ``last.safetensors``, and ``best.safetensors`` if the detector as it stands is the best so far."""
        save(self.current, self.folder / LAST)
        if self.progress.best_step == self.progress.step:
            save(self.current, self.folder / BEST)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: It is that of another model.
        """
        average = self.average.model if self.average else None
        checkpoint.restore(self.detector, self.adamw, average=average)
        self.progress = checkpoint.progress
        self.unreadable.resume()
        if checkpoint.scaler and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)

    def repair(self) -> None:
        """Write what follows from the checkpoint anew: a crash may have come before it was written, or after more."""
        self.write_detectors()
        write_metrics(self.folder / METRICS, self.progress.rows)
