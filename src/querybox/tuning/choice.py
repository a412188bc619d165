"""The engine that was found to be the fastest for a model, kept in the user's cache folder.

Each model has a folder in `cache_folder`, named by the digest of the files that it is read from. It holds
``choice.json`` and, if the engine runs a model that was exported for it, the files of that model.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import torch
from pydantic import Field, PositiveInt, ValidationError

from querybox.checkpoints.digest import digest_of
from querybox.checkpoints.files import model_files
from querybox.checkpoints.find import EXPORTED, Format, find_weights
from querybox.data.parsing import validation_problem
from querybox.detector import Detector
from querybox.errors import ConfigError
from querybox.exporting import load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.files import cache_folder, require_regular, write_text
from querybox.inference.engine import Engine, default_device
from querybox.settings import type_adapter
from querybox.text import counted, to_json
from querybox.tuning.machine import Machine

logger = logging.getLogger(__name__)

TITLES: dict[Format, str] = {
    "torch": "PyTorch",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "executorch": "ExecuTorch",
}
CHOICE = "choice.json"
"""Name of the file of a choice."""
MODELS = 8
"""Number of models whose choices are kept, those that were tuned last."""
MAX_THREADS = 2**12
"""Maximum number of threads: a corrupt choice must not start an arbitrary number of them."""
IS_THERE = {errno.EEXIST, errno.ENOTEMPTY, errno.EACCES}
"""Error numbers if there is a folder where one is moved to; the last is that of Windows."""
TRIES = 10
"""How often a folder that others put there is replaced; on Windows one with an open file cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to run a model."""

    engine: Format
    precision: ExportedPrecision = "float32"
    threads: Annotated[int, Field(ge=1, le=MAX_THREADS)]
    file: Path | None = None
    """The exported model; None for PyTorch."""

    def __post_init__(self) -> None:
        """Check that the file is in the format of the engine.

        Raises:
            ValueError: It is of another format, missing, or PyTorch is to compute in int8.
        """
        suffix = None if self.file is None else self.file.suffix.lower()
        if suffix != (None if self.engine == "torch" else EXPORTED[self.engine]):
            raise ValueError(f"{self.file} is not a file of {TITLES[self.engine]}")
        if self.file is None and self.precision == "int8":
            raise ValueError("PyTorch has no int8")

    def __str__(self) -> str:
        """Return its description for people."""
        return f"{TITLES[self.engine]}, {self.precision}, {counted(self.threads, 'thread')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The fastest way to run a model, and where it was found."""

    candidate: Candidate
    size: tuple[PositiveInt, PositiveInt]
    """(height, width) in pixels of the images with which it was measured."""
    digest: str | None
    """SHA-256 of the exported model; None for PyTorch."""
    machine: Machine


def folder_of(weights: Path) -> Path:
    """Return the folder of a model in the cache."""
    return cache_folder() / digest_of(*model_files(weights))


def remember(candidate: Candidate, size: tuple[int, int], weights: Path, drafts: Path) -> Choice:
    """Write the choice for a model, replacing an earlier one; its files are moved from `drafts` if they are there.

    The oldest choices of other models are removed if there are more than `MODELS`.
    """
    folder, file = folder_of(weights), candidate.file
    digest = None if file is None else digest_of(*model_files(file))
    new = drafts / "new"
    for each in (new, folder.parent):
        each.mkdir(parents=True, exist_ok=True)
    if file is not None and (file.is_relative_to(drafts) or file.parent == folder.resolve()):
        for each in model_files(file):
            each.replace(new / each.name)
        file = folder / file.name
    choice = Choice(
        candidate=dataclasses.replace(candidate, file=file),
        size=size,
        digest=digest,
        machine=Machine.here(),
    )
    values = type_adapter(Choice).dump_python(choice, mode="json")
    write_text(new / CHOICE, to_json(values, indent=2) + "\n")
    replace_folder(folder, new)
    remove_old()
    return choice


def replace_folder(folder: Path, new: Path) -> None:
    """Move `new` to the path `folder`, replacing what is there; other processes may do so at the same time."""
    for tries in range(1, TRIES + 1):
        remove(folder)
        try:
            new.replace(folder)
        except OSError as error:
            if tries == TRIES or error.errno not in IS_THERE:
                raise
        else:
            return


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # another process may have removed a part of it
    else:
        path.unlink(missing_ok=True)


def remove_old() -> None:
    """Remove the folders of models beyond the `MODELS` tuned last."""
    choices = sorted(cache_folder().glob(f"*/{CHOICE}"), key=last_change, reverse=True)
    for path in choices[MODELS:]:
        remove(path.parent)


def last_change(path: Path) -> float:
    """Return the time of the last change of a file or folder in seconds; 0 if another process has removed it."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def recall(weights: Path) -> Choice:
    """Read the choice for a model.

    Raises:
        ConfigError: There is none, it was found on another machine or with other versions, its file is corrupt, or the
            exported model is missing or was changed.
    """
    path = folder_of(weights) / CHOICE
    cure = f"run querybox benchmark {quote(str(weights))} --tune"
    require_regular(path, ConfigError)
    if not path.exists():
        raise ConfigError(f"{weights}: has not been tuned on this machine: {cure}")
    try:
        choice = type_adapter(Choice).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{path}: corrupt ({validation_problem(error)}); {cure} again") from error
    if differing := differences(choice.machine, Machine.here()):
        raise ConfigError(f"{weights}: was tuned with another {', '.join(differing)}: {cure} again")
    file = choice.candidate.file
    if file is not None:
        found = None
        with suppress(OSError, ValueError):  # the latter from a name that no file can have
            found = digest_of(*model_files(file))
        if found is None or found != choice.digest:
            raise ConfigError(
                f"{file}: is missing, or not the file with which {weights} was tuned: {cure} again"
            )
    return choice


def differences(tuned: Machine, here: Machine) -> Sequence[str]:
    """Return what differs between two machines, in words."""
    words = {"processor": "processor", "cores": "number of cores", "device": "device"}
    fields = [word for name, word in words.items() if getattr(tuned, name) != getattr(here, name)]
    names = sorted(tuned.packages.keys() | here.packages.keys())
    changed = [name for name in names if tuned.packages.get(name) != here.packages.get(name)]
    return [*fields, *(f"version of {name}" for name in changed)]


def load_tuned(path: str | Path) -> Engine:
    """Load a model as the engine that `querybox benchmark --tune` found to be the fastest, and log which it is.

    The number of threads of PyTorch is set for the whole process.

    Args:
        path: Weights of any layout, or a run folder, as for `querybox.load`.

    Raises:
        CheckpointError: The model cannot be read.
        ConfigError: It has not been tuned on this machine with these versions.
    """
    weights = find_weights(path)
    choice = recall(weights)
    candidate = choice.candidate
    height, width = choice.size
    logger.info("%s: runs with %s, as tuned for %dx%d pixels", weights, candidate, height, width)
    torch.set_num_threads(candidate.threads)
    if candidate.file is not None:
        return load_exported(candidate.file)
    detector = Detector.load(path).to(default_device())
    if candidate.precision == "bf16":
        return detector.optimize(precision="bf16")
    return detector
