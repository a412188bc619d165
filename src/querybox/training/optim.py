"""What is updated, and how fast: frozen parts, parameter groups, the learning rate of every step."""

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
    """Stop training the parts of `detector` called `names`, dotted, such as ``encoder.layers.0``.

    Raises:
        ConfigError: The detector has no such part, or nothing would be left to train.
    """
    modules = dict(detector.named_modules())
    for name in names:
        if name not in modules or not name:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.5)
            top = ", ".join(child for child, _ in detector.named_children())
            hint = f"Did you mean '{near[0]}'?" if near else f"Its parts: {top}."
            raise ConfigError(
                f"setting 'train.freeze' got {name!r}, which the detector does not have. {hint}"
            )
        modules[name].requires_grad_(requires_grad=False)
    if not any(parameter.requires_grad for parameter in detector.parameters()):
        raise ConfigError("setting 'train.freeze' leaves nothing to train; take a part out of it")


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
    """The learning rate of each step, as a share of the full one; a function of the step, and of a limited time.

    So nothing of it has to be saved, and a resumed run cannot get out of step with it.
    """

    kind: str
    total_steps: int
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    """Steps from which `step` multiplies by 0.1."""
    max_seconds: float = math.inf
    """When the run is stopped: `cosine` comes to 0 by then, whatever steps are left."""

    @classmethod
    def of(cls, settings: TrainSettings, steps_per_epoch: int) -> Schedule:
        """Return the schedule that `settings`, which count in epochs, mean for so many steps an epoch."""
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
        """Return what the learning rates are multiplied with in `step`, 0, 1, 2, ..., `seconds` into the run."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, max(done, seconds / self.max_seconds))))
        return 0.1 ** sum(step >= milestone for milestone in self.milestones)

    def apply(self, optimizer: Optimizer, step: int, seconds: float = 0.0) -> float:
        """Set the learning rates of `step` and return the first group's."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.factor(step, seconds)
        return float(optimizer.param_groups[0]["lr"])
