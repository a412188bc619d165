"""The run folder: who may write to it, and the settings that it keeps."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from querybox.checkpoints import native
from querybox.checkpoints.find import BEST, LAST
from querybox.diagnosis.record import RECORD
from querybox.errors import CheckpointError, ConfigError
from querybox.files import leftovers, write_text
from querybox.training.checkpoint import Checkpoint
from querybox.training.settings import RunSettings

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.csv"

CHANGEABLE = {
    "data.workers",
    "data.cache",
    "data.max_corrupt",
    "output",
    "train.epochs",
    "train.evaluate_every",
    "train.max_time",
    "train.patience",
    "train.trackers",
}
"""Settings that a resumed run may change: they do not change what one update computes, given its learning rate."""


def check_folder(settings: RunSettings, *, resume: bool) -> Checkpoint | None:
    """Make sure that the run may write to its folder, and return the state to go on from, if there is one.

    A run that was killed before its first checkpoint is resumed from its beginning.

    Raises:
        ConfigError: The folder is in use by another run, or this run changes settings that it must keep.
        CheckpointError: There is no run to resume, or what it has to go on from is lost or corrupt.
    """
    folder = Path(settings.output)
    if not resume:
        if folder.exists() and not is_free(folder):
            raise ConfigError(
                f"{folder}: the run folder is not empty; expected a new one: "
                "set another 'output', or resume the run in it (--resume)"
            )
        return None
    if (folder / CHECKPOINT).is_file():
        checkpoint = Checkpoint.read(folder / CHECKPOINT)
        require_same(folder, checkpoint.settings, settings.flat())
        check_best(folder, checkpoint)
        return checkpoint
    if (folder / LAST).exists():
        raise CheckpointError(
            f"{folder / CHECKPOINT}: is missing, and with it what the run would go on from; put it back, or start a "
            f"new run from what was learnt: --weights {folder / LAST}"
        )
    if not ((folder / "run.yaml").is_file() or (folder.is_dir() and is_free(folder))):
        raise CheckpointError(f"{folder}: there is no run to resume; start it without resume")
    return None


def is_free(folder: Path) -> bool:
    """Whether nothing is in a folder, but for what a run that was killed as it began was just writing."""
    return folder.is_dir() and set(folder.iterdir()) == set(leftovers(folder))


def require_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError where settings differ that a resumed run cannot change."""
    changed = [key for key in old if key not in CHANGEABLE and old[key] != new.get(key)]
    if changed:
        changes = ", ".join(f"'{key}' from {old[key]!r} to {new.get(key)!r}" for key in changed)
        raise ConfigError(
            f"{folder}: a resumed run cannot change {changes}; set them back, or start a new run"
        )


def check_best(folder: Path, checkpoint: Checkpoint) -> None:
    """Look whether the best detector is there, unless it is the one in the checkpoint, from which it is written.

    Raises:
        CheckpointError: It is corrupt.
    """
    progress, path = checkpoint.progress, folder / BEST
    if progress.best is None or progress.best_step == progress.step:
        return
    if not path.is_file():
        logger.warning("%s: is missing; the best detector is chosen anew from here", path)
        progress.best = None
        return
    try:
        native.read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or remove it, and the best is chosen anew from here") from error


def prepare_folder(settings: RunSettings, *, continued: bool) -> None:
    """Make the run folder, write the settings into it, and remove what a killed run has left unfinished."""
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    for path in leftovers(folder):
        path.unlink()
    if not continued:  # killed before the first checkpoint: all begins anew
        for name in (METRICS, RECORD):
            (folder / name).unlink(missing_ok=True)
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(
        folder / "run.yaml", f"# Repeat this run: querybox train run.yaml --output ANOTHER_FOLDER\n{text}"
    )
