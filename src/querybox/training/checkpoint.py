"""All that a run needs to go on, in one file, so that no crash can leave halves that do not fit together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from querybox.errors import CheckpointError
from querybox.weights import querybox as weights_file

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
    epoch_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    """What those updates add to the epoch's row of metrics."""
    seconds: float = 0.0
    """Time spent, over all the times the run was resumed."""
    best: float | None = None
    """AP of the best evaluation so far."""
    evaluations_since_best: int = 0


def save_checkpoint(
    path: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    average: nn.Module | None,
    scaler: dict[str, Any] | None,
) -> None:
    """Write the state of a run, atomically.

    Args:
        path: The file.
        progress: How far the run has come.
        model: Whose weights are trained.
        optimizer: Over parameters of `model`.
        average: The moving average of `model`, if one is kept.
        scaler: State of the gradient scaler, if there is one; plain numbers.
    """
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
    weights_file.write(
        path, tensors, {"progress": dataclasses.asdict(progress), "scaler": scaler}, mark=FORMAT
    )


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, *, average: nn.Module | None
) -> tuple[Progress, dict[str, Any] | None]:
    """Bring `model`, `optimizer` and `average` to the state in the file.

    Returns:
        How far the run had come, and the state of the gradient scaler if it had one.

    Raises:
        CheckpointError: The file is missing, corrupt, or of another model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint to resume from; start the run without resume")
    tensors, card = weights_file.read(path, mark=FORMAT, kind="a run's checkpoint")
    try:
        model.load_state_dict(part(tensors, "model."))
        if average is not None:
            average.load_state_dict(part(tensors, "average."))
        for name, parameter in model.named_parameters():
            if state := part(tensors, f"optimizer.{name}:"):
                count = state.pop("step")  # AdamW keeps it on the CPU
                # In the parameter's own order of memory: the fused AdamW pairs their numbers as they lie there.
                optimizer.state[parameter] = {
                    key: torch.empty_like(parameter).copy_(tensor) for key, tensor in state.items()
                }
                optimizer.state[parameter]["step"] = count
        return Progress(**card["progress"]), card["scaler"]
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: does not fit this run's model ({reason}); resume with the settings that the run was started with"
        ) from error


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
