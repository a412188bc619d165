"""The checkpoint of a run: everything needed to resume it, in a single file, so that it is always consistent.

It is written before ``last.safetensors``, ``best.safetensors`` and ``metrics.csv``, which a resumed run rewrites from
it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from querybox.checkpoints import native
from querybox.checkpoints.damage import cure
from querybox.errors import CheckpointError
from querybox.precision import present_name
from querybox.settings import type_adapter


@dataclasses.dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a run."""

    step: int = 0
    """Number of updates made."""
    epoch: int = 0
    """Number of completed epochs."""
    epoch_steps: int = 0
    """Number of updates made in the current epoch."""
    lr: float = 0.0
    """Learning rate of the last update."""
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sums over these updates, for the epoch's row of metrics."""
    seconds: float = 0.0
    """Duration of the run in seconds, including the parts before resuming."""
    best: float | None = None
    """AP of the best evaluation so far."""
    best_step: int | None = None
    """Number of updates before that evaluation."""
    evaluations_since_best: int = 0
    restarted: bool = False
    """Whether strong augmentation has ended, and `TrainSettings.ema_restart` applies."""
    time_up: bool = False
    """Whether a time limit ended the run, with an evaluation after the last update."""
    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Rows of ``metrics.csv``, one per epoch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunCheckpoint:
    """The state of a run."""

    progress: Progress
    tensors: dict[str, Tensor]
    """Tensors of the model, its moving average and its optimizer, on the CPU."""
    scaler: dict[str, Any] | None
    """State of the gradient scaler, if any."""
    settings: dict[str, Any]
    """Settings of the run by dotted name."""

    @classmethod
    def of(
        cls,
        progress: Progress,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        average: nn.Module | None,
        scaler: dict[str, Any] | None,
        settings: dict[str, Any],
    ) -> Self:
        """Return the state of a run: the trained `model`, its `optimizer`, and its moving `average`, if any.

        Tensors on the CPU are those of the run, so that memory for a copy of all is not needed.
        """
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}:{key}"] = tensor
        storages = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
        for name, tensor in tensors.items():
            shared = storages[tensor.untyped_storage().data_ptr()] > 1  # which safetensors rejects
            tensors[name] = (tensor.clone() if shared else tensor).detach().cpu()
        return cls(progress=progress, tensors=tensors, scaler=scaler, settings=settings)

    def write(self, path: Path) -> None:
        """Write the checkpoint to a file, atomically.

        Raises:
            DiskFullError: There is no space for it.
            CheckpointError: Reading the file back gave different content.
        """
        card = {
            "progress": dataclasses.asdict(self.progress),
            "scaler": self.scaler,
            "settings": self.settings,
        }
        native.write(path, self.tensors, card, mark=native.RUN)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a checkpoint written by `write`.

        Raises:
            CheckpointError: The file is missing, corrupt, or not a checkpoint of a run.
        """
        tensors, card = native.read(path, mark=native.RUN, kind="a run's checkpoint")
        try:
            settings = card.get("settings", {})  # absent in early files
            return cls(
                progress=type_adapter(Progress).validate_python(card["progress"]),
                tensors=tensors,
                scaler=type_adapter(dict[str, Any] | None).validate_python(card["scaler"]),
                settings=present_settings(type_adapter(dict[str, Any]).validate_python(settings)),
            )
        except (KeyError, TypeError, ValidationError) as error:
            reason = str(error).replace("\n", " ")
            raise CheckpointError(
                f"{path}: corrupt file, its header cannot be read ({reason}); {cure(path)}"
            ) from error

    def restore(self, model: nn.Module, optimizer: Optimizer, *, average: nn.Module | None) -> None:
        """Load this state into `model`, `optimizer` and `average`.

        Raises:
            CheckpointError: The state is that of another model.
        """
        try:
            model.load_state_dict(self.part("model."))
            if average is not None:
                average.load_state_dict(self.part("average."))
            for name, parameter in model.named_parameters():
                if state := self.part(f"optimizer.{name}:"):
                    count = state.pop("step").to(parameter.device)  # the device that fused AdamW requires
                    # In the parameter's memory format, because fused AdamW pairs elements by their storage order.
                    optimizer.state[parameter] = {
                        key: torch.empty_like(parameter).copy_(tensor) for key, tensor in state.items()
                    }
                    optimizer.state[parameter]["step"] = count
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"the checkpoint does not fit this run's model ({reason}); "
                "resume with the settings that the run was started with"
            ) from error

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with `prefix`, without it."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def present_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint, with the present name of their precision."""
    name = "train.precision"
    return {**settings, name: present_name(settings[name])} if name in settings else settings
