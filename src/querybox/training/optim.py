"""Frozen modules, the optimizer with its parameter groups, and the learning rate schedule."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Optimizer

from querybox.errors import ConfigError
from querybox.training.settings import TrainSettings


def freeze(detector: nn.Module, names: Iterable[str]) -> None:
    """Freeze the modules of `detector` with these dotted names, such as ``encoder.layers.0``.

    Raises:
        ConfigError: The detector has no such module, or no trainable parameters would be left.
    """
    modules = dict(detector.named_modules())
    for name in names:
        if name not in modules or not name:
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
    """Return AdamW over every trained parameter, the backbone's with a learning rate of their own."""
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    backbone = [p for name, p in trained.items() if name.startswith("backbone.")]
    rest = [p for name, p in trained.items() if not name.startswith("backbone.")]
    groups = [
        {"params": parameters, "lr": lr, "initial_lr": lr}
        for parameters, lr in ((rest, settings.lr), (backbone, settings.backbone_lr))
        if parameters
    ]
    return AdamW(groups, weight_decay=settings.weight_decay, fused=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate schedule: a factor that depends on the step, and on the elapsed time if that is limited.

    It has no state, so nothing has to be saved in checkpoints.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    """Steps at which `step` multiplies the learning rates by 0.1."""
    max_seconds: float = math.inf
    """Time limit of the run in seconds: `cosine` reaches 0 by then, regardless of the remaining steps."""

    @classmethod
    def of(cls, settings: TrainSettings, steps_per_epoch: int) -> Schedule:
        """Create the schedule from settings in epochs, for this many steps per epoch."""
        epochs = settings.milestones
        if epochs is None:
            epochs = (max(1, settings.epochs * 2 // 3),)
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
            return (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, max(done, seconds / self.max_seconds))))
        return 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def apply(self, optimizer: Optimizer, step: int, seconds: float = 0.0) -> float:
        """Set the learning rates of `step` and return that of the first group."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step, seconds)
        return float(optimizer.param_groups[0]["lr"])
