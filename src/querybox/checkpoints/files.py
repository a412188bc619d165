"""Safe reading of weight files, and writing of safetensors files."""

from __future__ import annotations

import json
import logging
import os
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from querybox.checkpoints.damage import cure
from querybox.checkpoints.digest import check_digest
from querybox.checkpoints.find import EXPORTED, find_weights, is_exported
from querybox.checkpoints.hub import CONFIG, PREPROCESSOR
from querybox.checkpoints.pickled import read_pickled, unreadable_file
from querybox.errors import CheckpointError
from querybox.text import listed

logger = logging.getLogger(__name__)

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "module", "net")
"""Keys of the weights in training checkpoints."""
AVERAGE_KEYS = (
    "ema",
    "ema_model",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "ema_state",
    "model_ema_state_dict",
)
"""Keys of the averaged weights in training checkpoints."""
SETTINGS = {"config": CONFIG, "preprocessor": PREPROCESSOR}
"""Files of a Hugging Face folder beside its weights, by their keys in the metadata."""
MAX_NESTING = 4
"""Maximum number of dicts around the weights, because a pickle can contain itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """The content of a checkpoint, under its own names."""

    tensors: dict[str, Tensor]
    """Dense tensors on the CPU that do not share memory with the file."""
    metadata: Mapping[str, Any]
    """Metadata, as far as the file has them:

    - ``"header"``: the text values in the header of a safetensors file;
    - ``"config"``, ``"preprocessor"``: ``config.json`` and ``preprocessor_config.json`` beside a Hugging Face file;
    - ``"meta"``: those of MMDetection, such as ``"CLASSES"`` or ``"dataset_meta"``;
    - ``"args"``: the options of a facebookresearch training by name.
    """


def read_checkpoint_file(path: str | Path) -> CheckpointFile:
    """Read weights of any public layout without executing code.

    Other content, such as the state of an optimizer, is dropped.

    Args:
        path: A path as for `find_weights`, to a ``.safetensors`` file; a ``.pth``, ``.pt`` or ``.bin`` file with
            tensors by name, alone or under one of `WEIGHT_KEYS` or, preferred to these, of `AVERAGE_KEYS`; or the
            ``.index.json`` of a sharded file.

    Raises:
        CheckpointError: The file is missing, truncated, corrupt, requires code to be executed, or has other content.
    """
    path = find_weights(path)
    if path.name.endswith(".index.json"):
        tensors, metadata = read_shards(path), {}
    elif path.suffix == ".safetensors":
        check_digest(path)
        tensors, header = read_safetensors(path)
        metadata = {"header": header}
    else:
        tensors, metadata = unwrap(path, read_pickled(path))
    for key, beside in files_beside(path).items():
        metadata[key] = read_json(beside)
    return CheckpointFile(tensors=tensors, metadata=metadata)


def files_beside(path: Path) -> dict[str, Path]:
    """Return the files of settings beside the weights in a Hugging Face folder, by their keys in the metadata."""
    files = {key: path.with_name(name) for key, name in SETTINGS.items()}
    return {key: file for key, file in files.items() if file.is_file()}


def model_files(path: Path) -> list[Path]:
    """Return all files that a model is read from.

    Of weights, these are the file, the shards of an index, and the settings beside them; of an exported model the file,
    and for OpenVINO that of its weights.

    Raises:
        CheckpointError: An index is corrupt.
    """
    if is_exported(path):
        return [path, *([path.with_suffix(".bin")] if path.suffix.lower() == EXPORTED["openvino"] else [])]
    shards = dict.fromkeys(shard_files(path).values()) if path.name.endswith(".index.json") else ()
    return [path, *(path.with_name(name) for name in shards), *files_beside(path).values()]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and the text values in its header.

    Raises:
        CheckpointError: The file is truncated, corrupt, or of another kind.
    """
    require_utf8(path)
    try:
        with safe_open(path, framework="pt") as file:
            # Clones, because the tensors are memory-mapped and would change with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable_file(path, error) from error


def require_utf8(path: Path) -> None:
    """Raise `CheckpointError` if a path is not UTF-8, because the safetensors library opens no other."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{path}: is not UTF-8, as paths of safetensors files have to be; rename the file or folder, or make a "
            "link to it"
        ) from None


def read_shards(index: Path) -> dict[str, Tensor]:
    """Read the shards listed in an index.

    Raises:
        CheckpointError: The index is corrupt, or a shard is missing, corrupt, or does not match the index.
    """
    shards = shard_files(index)
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(shards.values()):
        shard = read_checkpoint_file(index.with_name(file)).tensors
        expected = {name for name, location in shards.items() if location == file}
        if shard.keys() != expected:
            differences = listed(sorted(shard.keys() ^ expected))
            raise CheckpointError(
                f"{index}: '{file}' does not contain the tensors in the index ({differences}); {cure(index)}"
            )
        tensors |= shard
    return tensors


def shard_files(index: Path) -> dict[str, str]:
    """Return the file name of the shard of each tensor in an index.

    Raises:
        CheckpointError: The index is corrupt.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(
        isinstance(file, str) and file == Path(file).name and Path(file).suffix in (".safetensors", ".bin")
        for file in shards.values()
    ):
        raise CheckpointError(
            f"{index}: corrupt index: expected a 'weight_map' of tensors to files beside it"
        )
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        CheckpointError: The file cannot be read, or does not contain a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt, or not a JSON file ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def unwrap(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the tensors and the metadata in the content of a pickled file.

    Raises:
        CheckpointError: There are no tensors, or other objects are among them.
    """
    metadata: dict[str, Any] = {}
    held = entries(content)
    if isinstance(held.get("meta"), dict):
        metadata["meta"] = entries(held.pop("meta"))
    args = held.get("args")
    if isinstance(args, Namespace | dict):
        metadata["args"] = entries(vars(args) if isinstance(args, Namespace) else args)
        del held["args"]
    if average := find_average(held):
        if wrapper := wrapper_of(held):
            logger.info(
                "%s: read the averaged weights '%s'; for those of the last step, save '%s' alone with torch.save",
                path,
                average,
                wrapper,
            )
        held = entries(held[average])
    held = weights_in(held)
    if not held:
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    odd = [str(name) for name, value in held.items() if not (isinstance(name, str) and is_plain(value))]
    if odd:
        raise CheckpointError(
            f"{path}: expected only names and dense tensors, got something else in {listed(odd)}"
        )
    return {name: tensor.detach() for name, tensor in held.items()}, metadata


def find_average(held: Mapping[Any, Any]) -> str | None:
    """Return the key of the averaged weights in a training checkpoint, which are evaluated; None if there are none.

    MMEngine exchanges the two before it saves, so that its ``state_dict`` is the average.
    """
    for key in AVERAGE_KEYS:
        average = entries(held.get(key))
        exchanged = key == "ema_state_dict" and "steps" in average and "state_dict" in held
        if not exchanged and any(isinstance(each, Tensor) for each in weights_in(average).values()):
            return key
    return None


def weights_in(held: dict[Any, Any]) -> dict[Any, Any]:
    """Return the innermost dict in `WEIGHT_KEYS`."""
    for _ in range(MAX_NESTING):
        if wrapper := wrapper_of(held):
            held = entries(held[wrapper])
    return held


def wrapper_of(held: Mapping[Any, Any]) -> str | None:
    """Return the first key in `WEIGHT_KEYS` of another dict; None if there is none."""
    return next((key for key in WEIGHT_KEYS if isinstance(held.get(key), dict)), None)


def entries(value: object) -> dict[Any, Any]:
    """Return a copy of a dict without custom methods, which a pickle can inject; empty for any other value."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def is_plain(value: object) -> bool:
    """Return whether a value is a dense tensor that stores every element; others could expand when copied."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, not atomically.

    Raises:
        OSError: The file cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:  # contains the system's error number in its message
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        # On Windows, Python derives the error number of C from the last argument; elsewhere it is ignored.
        raise OSError(code, os.strerror(code), str(path), code) from error
