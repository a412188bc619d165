"""All that a run needs to go on, in one file, so that no crash can leave halves that do not fit together.

It is written first; ``last.safetensors``, ``best.safetensors`` and ``metrics.csv`` follow from it, and a run that is
resumed writes them anew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from querybox.checkpoints import native
from querybox.errors import CheckpointError

FORMAT = "querybox-run-1"


@dataclasses.dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Updates made."""
    epoch: int = 0
    """Epochs finished."""
    epoch_steps: int = 0
    """Updates made in the epoch that is not finished."""
    lr: float = 0.0
    """Learning rate of the last update."""
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """What those updates add to the epoch's row of metrics."""
    seconds: float = 0.0
    """Time spent, over all the times the run was resumed."""
    best: float | None = None
    """AP of the best evaluation so far."""
    best_step: int | None = None
    """Updates that had been made then."""
    evaluations_since_best: int = 0
    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Those of ``metrics.csv``, one an epoch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run."""

    progress: Progress
    tensors: dict[str, Tensor]
    """Of the model, its moving average and its optimizer, on the CPU."""
    scaler: dict[str, Any] | None
    """State of the gradient scaler, if there is one; plain numbers."""
    settings: dict[str, Any]
    """Those of the run, as plain values by dotted name."""

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
        """Copy the state of a run: the trained `model`, its `optimizer`, its moving `average` if one is kept."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        for name, parameter in model.named_parameters():
            for key, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}:{key}"] = tensor
        # Clones: safetensors refuses tensors that share memory, as views of one buffer do, or are in another order.
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }
        return cls(progress=progress, tensors=tensors, scaler=scaler, settings=settings)

    def write(self, path: Path) -> None:
        """Write it to a file, atomically.

        Raises:
            DiskFullError: There is no room for it.
            CheckpointError: What was read back is not what was written.
        """
        card = {
            "progress": dataclasses.asdict(self.progress),
            "scaler": self.scaler,
            "settings": self.settings,
        }
        native.write(path, self.tensors, card, mark=FORMAT)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            CheckpointError: The file is missing, corrupt, or something else.
        """
        tensors, card = native.read(path, mark=FORMAT, kind="a run's checkpoint")
        plain = TypeAdapter(dict[str, Any])
        try:
            return cls(
                progress=TypeAdapter(Progress).validate_python(card["progress"]),
                tensors=tensors,
                scaler=None if card["scaler"] is None else plain.validate_python(card["scaler"]),
                settings=plain.validate_python(card.get("settings", {})),  # early files have none
            )
        except (KeyError, TypeError, ValidationError) as error:
            reason = str(error).replace("\n", " ")
            raise CheckpointError(f"{path}: corrupt file, its header cannot be read ({reason})") from error

    def restore(self, model: nn.Module, optimizer: Optimizer, *, average: nn.Module | None) -> None:
        """Bring `model`, `optimizer` and `average` to this state.

        Raises:
            CheckpointError: It is that of another model.
        """
        try:
            model.load_state_dict(self.part("model."))
            if average is not None:
                average.load_state_dict(self.part("average."))
            for name, parameter in model.named_parameters():
                if state := self.part(f"optimizer.{name}:"):
                    count = state.pop("step").to(parameter.device)  # where the fused AdamW keeps it
                    # In the parameter's own order of memory: the fused AdamW pairs their numbers as they lie there.
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
