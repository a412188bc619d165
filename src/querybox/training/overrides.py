"""The settings of a run as they are given to `train` and on the command line: a dataset or a run file, and overrides.

An override is named like the setting, ``train.epochs``, or by the last part of that name, ``epochs``.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from querybox.arguments import require_path
from querybox.data.user_transform import describe
from querybox.errors import ConfigError
from querybox.inference.engine import default_device
from querybox.models import KINDS, PUBLIC_WEIGHTS
from querybox.runfile import RUN_FILE, Values, is_run, merge, read_run_file
from querybox.training.settings import Given, RunSettings, flatten
from querybox.urls import is_url

SUFFIXES = {".yaml", ".yml"}
"""Suffixes of run files."""
DEVICE_NAMES = {"device", "devices", "gpu", "gpus", "cuda"}
"""Settings of other libraries that select the device."""


def read_settings(
    target: RunSettings | str | Path | None, overrides: Mapping[str, Any], *, where: str
) -> Given:
    """Read the settings of a run.

    Args:
        target: Settings, a run file, or a dataset to train on with default settings; None if the overrides name the
            dataset.
        overrides: Settings by full or short name, such as ``{"epochs": 5}``, which take precedence over the run file.
        where: The source of the overrides, for messages.

    Raises:
        ConfigError: There is no dataset, the run file cannot be read, or a setting is unknown, ambiguous or invalid.
    """
    over = nested(overrides, where)
    values = merge(read_target(target, where), over)
    if "data" not in values:
        raise ConfigError(
            f"{where}: got no dataset; expected the path of a dataset or of a run file"
            if target is None
            else f"{target}: names no dataset; expected one: data: {{train: PATH}}"
        )
    sources = [str(target)] if isinstance(target, str | Path) else []
    settings = RunSettings.parse(values, where=" and ".join([*sources, where] if overrides else sources))
    return Given(settings=settings, overrides=frozenset(flatten(over)))


def read_target(target: object, where: str) -> Values:
    """Return the settings of a run file, or the settings that train on a dataset.

    Raises:
        ConfigError: The run file cannot be read, or `target` is neither a path nor settings.
    """
    if target is None:
        return {}
    if isinstance(target, RunSettings):
        return target.model_dump(exclude_unset=True)
    if isinstance(target, str) and is_url(target):
        return {"data": {"train": target}}
    path = require_path(where, target, "a dataset or a run file, or RunSettings")
    if path.suffix.lower() in SUFFIXES:
        values = read_run_file(path, names=PUBLIC_WEIGHTS)
        if path.name == RUN_FILE and is_run(path.parent):
            values["output"] = str(path.parent)  # that of the folder, which may have been copied or moved
        if "names" not in values:  # otherwise the data.yaml of a YOLO dataset
            return values
    if is_run(path):
        raise ConfigError(
            f"{path}: is the folder of a run; expected a dataset or a run file: use {path / RUN_FILE}, with --resume "
            "(resume=True) to resume the run"
        )
    return {"data": {"train": str(path)}}


def with_transform(settings: RunSettings, transform: Callable[..., Any] | None) -> RunSettings:
    """Return `settings` with the description of the user's transform, or of none.

    Raises:
        ConfigError: The settings describe a transform, but none is given.
    """
    if transform is None and settings.data.transform is not None:
        raise ConfigError(
            f"setting 'data.transform' is {settings.data.transform!r}, the description of a transform; expected the "
            "transform itself: querybox.train(..., transform=...), or data.transform=null to train without"
        )
    described = None if transform is None else describe(transform)
    return settings.replace(data=settings.data.replace(transform=described))


def nested(overrides: Mapping[str, Any], where: str) -> Values:
    """Convert ``{"epochs": 5, "train.lr": 1e-4}`` to ``{"train": {"epochs": 5, "lr": 1e-4}}``.

    Raises:
        ConfigError: A short name is unknown or ambiguous.
    """
    values: Values = {}
    for name, value in overrides.items():
        nesting = os.fspath(value) if isinstance(value, os.PathLike) else value
        for part in reversed(full_name(name, where).split(".")):
            nesting = {part: nesting}
        values = merge(values, nesting)
    return values


def full_name(name: str, where: str) -> str:
    """Return the dotted name of a setting: ``train.epochs`` for ``epochs``. Dotted names are returned unchanged.

    Raises:
        ConfigError: No setting, or more than one, has this name.
    """
    if "." in name or name in RunSettings.model_fields:
        return name
    known = short_names()
    if len(found := known.get(name, ())) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{where}: setting '{name}' could be {' or '.join(found)}; write it in full")
    if name in DEVICE_NAMES:
        raise ConfigError(f"{where}: there is no setting '{name}': {describe_device()}")
    close = [full for each in difflib.get_close_matches(name, known, n=1) for full in known[each]]
    hint = f"Did you mean '{close[0]}'?" if close else "The settings of a run are listed in its run.yaml."
    raise ConfigError(f"{where}: unknown setting '{name}'. {hint}")


def describe_device() -> str:
    """Return which device is used, and how to change it."""
    device = default_device()
    if device.type == "cpu":
        return (
            "the GPU that PyTorch finds is used, and it finds none (torch.accelerator.is_available() is False): "
            "install a driver and a build of PyTorch for it"
        )
    return f"the GPU that PyTorch finds is used, here {device}; to use the CPU, set CUDA_VISIBLE_DEVICES="


@cache
def short_names() -> dict[str, tuple[str, ...]]:
    """Return the full names of all settings of a run by their last part."""
    names = dict.fromkeys(RunSettings.keys())
    for kind in KINDS.values():
        names |= dict.fromkeys(kind.keys("model."))
    short: dict[str, tuple[str, ...]] = {}
    for name in names:
        last = name.rpartition(".")[2]
        short[last] = (*short.get(last, ()), name)
    return short
