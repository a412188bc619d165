"""Load models for commands, on the accelerator if there is one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from querybox.errors import ConfigError
from querybox.precision import Precision, resolve_precision

if TYPE_CHECKING:
    from querybox.detector import Detector
    from querybox.inference.engine import Engine


def require_order(command: str, model: Path, others: Sequence[str | Path]) -> None:
    """Check that the arguments of a command whose first argument is the model are not in another order.

    Raises:
        ConfigError: The first is not a model, but one of the others is.
    """
    from querybox.checkpoints.find import is_exported, is_model

    arguments = [model, *map(Path, others)]
    models = [path for path in arguments if is_model(path) or is_exported(path)]
    if models and model not in models:
        rest = [path for path in arguments if path != models[0]]
        words = [command, *(shlex.quote(str(path)) for path in (models[0], *rest))]
        raise ConfigError(
            f"{model}: is not a model, but {models[0]} is; the model comes first: {' '.join(words)}"
        )


def load_detector(path: Path) -> Detector:
    """Load a detector from anything that `Detector.load` reads."""
    from querybox.detector import Detector
    from querybox.inference.engine import default_device

    return Detector.load(path).to(default_device())


def load_model(path: Path, *, trusted: bool, precision: Precision = "float32", tuned: bool = False) -> Engine:
    """Load anything that `querybox.load` reads.

    Args:
        path: The file or folder.
        trusted: Whether code in the file may be executed.
        precision: Precision of a detector's computations; an exported model has its own.
        tuned: Whether to run a detector as `querybox.tuning.load_tuned` does.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: `precision` is bf16 or fp16 for an exported model, or `tuned` is True for one or with another
            precision.
    """
    from querybox.checkpoints.find import is_exported
    from querybox.detector import load

    if tuned:
        if is_exported(path) or precision != "float32":
            given = "an exported model" if is_exported(path) else f"--precision {precision}"
            raise ConfigError(
                f"{path}: --tuned got {given}; expected a checkpoint without --precision, because it decides about both"
            )
        from querybox.tuning import load_tuned

        return load_tuned(path)
    if not is_exported(path):
        detector = load_detector(path)
        if precision == "auto":
            precision = resolve_precision(precision, detector.device)
        return detector if precision == "float32" else detector.optimize(precision=precision)
    if precision not in ("auto", "float32"):
        raise ConfigError(
            f"{path}: --precision {precision} got an exported model, which keeps the precision it was exported in; "
            "omit --precision, or export the model again"
        )
    return load(path, trusted=trusted)
