"""All that a run needs to go on, in one file, so that no crash can leave halves that do not fit together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from querybox.errors import CheckpointError
from querybox.weights.files import atomic
from querybox.weights.querybox import checksum

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
    card = {"progress": dataclasses.asdict(progress), "scaler": scaler, "checksum": checksum(tensors)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "run": json.dumps(card)})


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, *, average: nn.Module | None
) -> tuple[Progress, dict[str, Any] | None]:
    """Bring `model`, `optimizer` and `average` to the state in the file.

    Returns:
        How far the run had come, and the state of the gradient scaler if it had one.

    Raises:
        CheckpointError: The file is missing, corrupt, or of another model.
    """
    tensors, card = read(path)
    try:
        model.load_state_dict(part(tensors, "model."))
        if average is not None:
            average.load_state_dict(part(tensors, "average."))
        for name, parameter in model.named_parameters():
            if state := part(tensors, f"optimizer.{name}:"):
                count = state.pop("step")  # AdamW keeps it on the CPU
                optimizer.state[parameter] = {
                    key: tensor.to(parameter.device) for key, tensor in state.items()
                }
                optimizer.state[parameter]["step"] = count
        return Progress(**card["progress"]), card["scaler"]
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: does not fit this run's model ({reason}); resume with the settings that the run was started with"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint, checked."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint to resume from; start the run without resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: corrupt file ({error}); restore it from a copy or start the run anew"
        ) from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a run's checkpoint ({FORMAT}), got {metadata.get('format')}")
    card = json.loads(metadata["run"])
    if checksum(tensors) != card["checksum"]:
        raise CheckpointError(f"{path}: corrupt file, its checksum does not match; restore it from a copy")
    return tensors, card


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
