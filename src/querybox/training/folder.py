"""The run folder: who may write to it, and the settings that it keeps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from querybox.errors import CheckpointError, ConfigError
from querybox.runfile import read_run_file
from querybox.training.settings import RunSettings
from querybox.weights.files import atomic

logger = logging.getLogger(__name__)

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


def check_folder(settings: RunSettings, *, resume: bool) -> bool:
    """Make sure that the run may write to its folder, and return whether there is a checkpoint to go on from.

    A run that was killed before its first checkpoint is resumed from its beginning.

    Raises:
        ConfigError: The folder is in use by another run, or this run changes settings that it must keep.
        CheckpointError: There is no run to resume.
    """
    folder = Path(settings.output)
    if not resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder}: the run folder is not empty; expected a new one: "
                "set another 'output', or resume the run in it (--resume)"
            )
        return False
    if not (folder / "run.yaml").is_file():
        raise CheckpointError(f"{folder}: there is no run to resume; start it without resume")
    before = RunSettings.parse(read_run_file(folder / "run.yaml"), where=str(folder / "run.yaml"))
    old, new = flatten(before), flatten(settings)
    changed = [key for key in old | new if key not in CHANGEABLE and old.get(key) != new.get(key)]
    if changed:
        changes = ", ".join(f"'{key}' from {old.get(key)!r} to {new.get(key)!r}" for key in changed)
        raise ConfigError(
            f"{folder}: a resumed run cannot change {changes}; set them back, or start a new run"
        )
    return (folder / "checkpoint.safetensors").exists()


def prepare_folder(settings: RunSettings) -> Path:
    """Make the run folder, write the settings into it, and remove what a killed run was just writing."""
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):
        torn.unlink()
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with atomic(folder / "run.yaml") as temporary:
        temporary.write_text(
            f"# Repeat this run: querybox train run.yaml --output ANOTHER_FOLDER\n{text}", encoding="utf-8"
        )
    return folder


def flatten(settings: RunSettings) -> dict[str, Any]:
    """Return every setting by its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        flat |= (
            {f"{name}.{key}": inner for key, inner in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat
