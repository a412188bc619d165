"""The run folder: checks before a run writes to it, and its settings."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from querybox.checkpoints import native
from querybox.checkpoints.damage import cure
from querybox.checkpoints.find import BEST, CHECKPOINT, LAST
from querybox.data.settings import NO_VALIDATION
from querybox.diagnosis.record import METRICS, RECORD
from querybox.errors import CheckpointError, ConfigError
from querybox.files import contents, write_text
from querybox.runfile import RUN_FILE
from querybox.temporary import remove_leftovers
from querybox.training.checkpoint import RunCheckpoint
from querybox.training.lock import LOCK
from querybox.training.settings import RunSettings

logger = logging.getLogger(__name__)

CHANGEABLE = {
    "data.workers",
    "data.allow_network",
    "data.cache",
    "data.max_corrupt",
    "data.train",
    "data.val",
    "output",
    "train.epochs",
    "train.evaluate_every",
    "train.max_time",
    "train.patience",
    "train.trackers",
}
"""Settings that a resumed run may change, because an update does not depend on them except by its learning rate.

The data may be in another place: their content has to be the same, see `querybox.training.data.Fingerprint`.
"""


def check_folder(settings: RunSettings, *, resume: bool) -> RunCheckpoint | None:
    """Check that the run may write to its folder, and return the checkpoint to resume from, if any.

    A run that was killed before its first checkpoint is restarted.

    Raises:
        ConfigError: The folder belongs to another run, or settings differ that a resumed run must not change.
        CheckpointError: There is no run to resume, or its checkpoint is missing or corrupt.
    """
    folder = settings.folder
    if not resume:
        if folder.exists() and not is_unused(folder):
            raise ConfigError(
                f"{folder}: the run folder is not empty; expected a new one: "
                "set another 'output', or resume the run in it (--resume)"
            )
        return None
    if (folder / CHECKPOINT).is_file():
        checkpoint = RunCheckpoint.read(folder / CHECKPOINT)
        if not checkpoint.settings:  # an early file
            checkpoint = dataclasses.replace(checkpoint, settings=settings.flat())
        require_same_settings(folder, checkpoint.settings, settings.flat())
        check_best(folder, checkpoint)
        return checkpoint
    if (folder / LAST).exists():
        raise CheckpointError(
            f"{folder / CHECKPOINT}: is missing, so the run cannot be resumed; {cure(folder / CHECKPOINT)}"
        )
    if not ((folder / RUN_FILE).is_file() or is_unused(folder)):
        raise CheckpointError(f"{folder}: there is no run to resume; start it without resume")
    return None


def is_unused(folder: Path) -> bool:
    """Return whether a folder is empty, apart from its lock and what `contents` leaves out."""
    return folder.is_dir() and contents(folder) <= {LOCK}


def require_same_settings(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ConfigError if settings differ that a resumed run cannot change."""
    changed = [
        key for key in old if old[key] != new.get(key) and not is_changeable(key, old[key], new.get(key))
    ]
    if changed:
        changes = ", ".join(f"'{key}' from {old[key]!r} to {new.get(key)!r}" for key in changed)
        raise ConfigError(
            f"{folder}: a resumed run cannot change {changes}; restore them, or start a new run"
        )


def is_changeable(key: str, old: Any, new: Any) -> bool:
    """Return whether a resumed run may change a setting. Validation data may move, but not be added or removed."""
    if key == "data.val":
        return not {None, NO_VALIDATION} & {old, new}
    if key == "train.milestones" and new is None:
        return True  # see `keep_milestones`
    return key in CHANGEABLE


def check_best(folder: Path, checkpoint: RunCheckpoint) -> None:
    """Check that the file of the best detector can be read, unless it is that of the checkpoint.

    If the file is missing, the best detector is that of the later evaluations.

    Raises:
        CheckpointError: The file is corrupt.
    """
    progress, path = checkpoint.progress, folder / BEST
    if progress.best is None or progress.best_step == progress.step:
        return
    if not path.is_file():
        logger.warning(
            "%s: is missing; earlier evaluations are ignored when selecting the best detector", path
        )
        progress.best = progress.best_step = None
        return
    try:
        native.read(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; or remove it, and the best of the later evaluations is kept"
        ) from error


def prepare_folder(settings: RunSettings, *, continued: bool) -> None:
    """Create the run folder, write the settings to it, and remove unfinished files of a killed run."""
    folder = settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if not continued:  # new, or killed before the first checkpoint
        for name in (METRICS, RECORD):
            (folder / name).unlink(missing_ok=True)
    # The folder is relative to the file, so that a copy is a run of its own.
    values = {**settings.model_dump(mode="json"), "output": "."}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    header = f"# Repeat this run: querybox train {RUN_FILE} --output ANOTHER_FOLDER"
    write_text(folder / RUN_FILE, f"{header}\n{text}")
