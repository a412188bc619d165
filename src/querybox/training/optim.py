"""Frozen modules, the optimizer with its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import nn
from torch.optim import AdamW, Optimizer

from querybox.errors import ConfigError
from querybox.text import counted
from querybox.training.checkpoint import Progress
from querybox.training.settings import RunSettings, TrainSettings

FLAT_END = 0.5
"""Factor of the learning rates at the end of `flat_cosine` (DEIM)."""


def freeze(detector: nn.Module, names: Iterable[str]) -> None:
    """Freeze the modules of `detector` with these dotted names, such as ``encoder.layers.0``.

    Raises:
        ConfigError: The detector has no such module, or no trainable parameters would be left.
    """
    modules = {name: module for name, module in detector.named_modules() if name}
    for name in names:
        if name not in modules:
            close = difflib.get_close_matches(name, modules, n=1, cutoff=0.5)
            top = ", ".join(child for child, _ in detector.named_children())
            hint = f"Did you mean '{close[0]}'?" if close else f"Its modules: {top}."
            raise ConfigError(
                f"setting 'train.freeze' got {name!r}, which the detector does not have. {hint}"
            )
        modules[name].requires_grad_(requires_grad=False)
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise ConfigError("setting 'train.freeze' leaves nothing to train; remove a module from it")


def build_optimizer(detector: nn.Module, settings: TrainSettings) -> AdamW:
    """Return AdamW over every trained parameter.

    The backbone's have a learning rate of their own; its norms, and sampling layers, may have another one. Norms and
    biases may be exempt from weight decay.
    """
    parts = dict.fromkeys(detector.parameters(), "")
    if settings.sampling_lr is not None:
        parts |= dict.fromkeys(sampling_parameters(detector), "sampling")
    parts |= {each: "backbone" for name, each in detector.named_parameters() if name.startswith("backbone.")}
    if settings.backbone_norm_lr is not None:
        parts |= dict.fromkeys(backbone_norm_parameters(detector), "backbone norms")
    rates = {
        "": settings.lr,
        "backbone": settings.backbone_lr,
        "backbone norms": settings.backbone_norm_lr,
        "sampling": settings.sampling_lr,
    }
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (part, decays): {"params": [], "lr": lr, "initial_lr": lr, "weight_decay": weight_decay}
        for part, lr in rates.items()
        for decays, weight_decay in ((True, settings.weight_decay), (False, 0.0))
    }
    for parameter, part in parts.items():
        if parameter.requires_grad:
            decays = settings.decay_norms or parameter.ndim > 1
            groups[part, decays]["params"].append(parameter)
    return AdamW([group for group in groups.values() if group["params"]], fused=True)


def backbone_norm_parameters(detector: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the norms in the backbone."""
    for name, module in detector.named_modules():
        if name.startswith("backbone.") and isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm):
            yield from module.parameters()


def sampling_parameters(detector: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of the layers that modules name in their attribute `sampling_layers`."""
    for module in detector.modules():
        for name in getattr(module, "sampling_layers", ()):
            yield from module.get_submodule(name).parameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate schedule: a factor that depends on the step, and on the elapsed time if that is limited.

    It has no state, so nothing has to be saved in checkpoints.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    """Steps at which `step` multiplies the learning rates by 0.1, or between which `flat_cosine` decreases them."""
    max_seconds: float = math.inf
    """Time limit of the run in seconds, which `cosine` and `flat_cosine` take for the end of the run if it comes before
    the last step."""

    @classmethod
    def of(cls, settings: TrainSettings, steps_per_epoch: int) -> Self:
        """Create the schedule from settings in epochs, for this many steps per epoch."""
        epochs = settings.milestones
        if epochs is None:
            flat = settings.schedule == "flat_cosine"
            epochs = (settings.epochs // 2, settings.epochs) if flat else default_milestones(settings.epochs)
        return cls(
            kind=settings.schedule,
            total_steps=settings.epochs * steps_per_epoch,
            warmup_steps=settings.warmup_steps,
            milestones=tuple(epoch * steps_per_epoch for epoch in epochs),
            max_seconds=math.inf if settings.max_time is None else settings.max_time,
        )

    def factor(self, step: int, seconds: float = 0.0) -> float:
        """Return the factor of the learning rates in `step`, from 0, after `seconds` of the run."""
        if step < self.warmup_steps:
            return ((step + 1) / self.warmup_steps) ** (2 if self.kind == "flat_cosine" else 1)
        if self.kind == "flat_cosine":
            begin, end = self.milestones
            now = max(step, self.total_steps * seconds / self.max_seconds)
            done = (now - begin) / max(1, end - begin)
            return FLAT_END + (1 - FLAT_END) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, max(done, seconds / self.max_seconds))))
        return 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def share(self, step: int, seconds: float) -> float:
        """Return the share of the run that is done, of its updates or of its time limit, whichever is larger."""
        return max(step / self.total_steps, seconds / self.max_seconds)

    def apply(self, optimizer: Optimizer, step: int, seconds: float = 0.0) -> float:
        """Set the learning rates of `step` and return that of the first group."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step, seconds)
        return float(optimizer.param_groups[0]["lr"])


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Return the milestones in epochs of the schedule `step` if the settings have none."""
    return (max(1, epochs * 2 // 3),)


def keep_milestones(settings: RunSettings, old: Mapping[str, Any], epoch: int) -> RunSettings:
    """Return the settings of a resumed run in which a milestone that was passed stays passed.

    Otherwise more epochs would move it, and the learning rate would rise again.

    Args:
        settings: The settings to resume with.
        old: The settings of the run so far, by dotted name.
        epoch: Number of completed epochs.
    """
    if settings.train.milestones is not None:
        return settings
    milestones = old["train.milestones"]
    if milestones is None:
        milestones = default_milestones(old["train.epochs"])
        moved = settings.train.schedule == "step" and old["train.epochs"] != settings.train.epochs
        if not moved or epoch < milestones[0]:
            return settings
    return settings.replace(train=settings.train.replace(milestones=milestones))


def describe_rise(schedule: Schedule, initial_lr: float, progress: Progress) -> str:
    """Return in one line that a resumed run raises the learning rate; empty if it does not.

    More epochs or more time stretch a cosine.

    Args:
        schedule: The schedule of the resumed run.
        initial_lr: Learning rate of the optimizer's first group before the schedule.
        progress: The progress of the run.
    """
    new_lr = initial_lr * schedule.factor(progress.step, progress.seconds)
    if progress.step < schedule.warmup_steps or not 0 < progress.lr < new_lr:
        return ""
    return (
        f"the learning rate rises from {progress.lr:.2g} to {new_lr:.2g}, because the run now ends later than when it "
        f"stopped (train.schedule = {schedule.kind})"
    )


def schedule_warnings(schedule: Schedule, settings: TrainSettings) -> tuple[str, str]:
    """Return warnings about a schedule that is probably unintended, one line each; empty where there is none."""
    return describe_warmup(schedule, settings.lr), describe_milestones(settings)


def describe_warmup(schedule: Schedule, lr: float) -> str:
    """Return in one line that the run ends within its warm-up; empty if it does not."""
    if schedule.total_steps > schedule.warmup_steps:
        return ""
    highest = lr * schedule.factor(schedule.total_steps - 1)
    return (
        f"the learning rate rises to {highest:.2g} only, not to {lr:.2g}: the run has {schedule.total_steps:,} updates "
        f"and the warm-up {schedule.warmup_steps:,}; lower train.warmup_steps, or raise train.epochs"
    )


def describe_milestones(settings: TrainSettings) -> str:
    """Return in one line that the run ends before the learning rate decreases; empty if it does not."""
    milestones, epochs = settings.milestones, settings.epochs
    if settings.schedule == "cosine" or not milestones or min(milestones) < epochs:
        return ""
    return (
        f"the learning rate does not decrease: it would after epoch {min(milestones)} (train.milestones), and the run "
        f"has {counted(epochs, 'epoch')}; set train.milestones=null, for the usual share of the epochs, or raise "
        "train.epochs"
    )
