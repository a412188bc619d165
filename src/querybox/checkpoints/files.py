"""Reading weight files safely, and writing them so that a crash leaves the old file or the new one."""

from __future__ import annotations

import json
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

from querybox.checkpoints.digest import check_digest
from querybox.checkpoints.find import find_weights
from querybox.checkpoints.pickled import damaged, read_pickled
from querybox.errors import CheckpointError
from querybox.text import listed


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFile:
    """What a checkpoint holds, under its own names."""

    tensors: dict[str, Tensor]
    """Dense, on the CPU, in memory of their own."""
    metadata: Mapping[str, Any]
    """What is known beside the tensors, as far as the file has it:

    - ``"header"``: the text values in the header of a safetensors file;
    - ``"config"``, ``"preprocessor"``: ``config.json`` and ``preprocessor_config.json`` beside a Hugging Face file;
    - ``"meta"``: MMDetection's, such as its ``"CLASSES"`` or ``"dataset_meta"``;
    - ``"args"``: the options of a facebookresearch training by name.
    """


def read_checkpoint_file(path: str | Path) -> CheckpointFile:
    """Read weights of any public layout without executing anything.

    Optimizer states and the like in a training's file are left out.

    Args:
        path: What `find_weights` finds: a ``.safetensors`` file; a ``.pth``, ``.pt`` or ``.bin`` file with tensors by
            name, alone or under ``"model"`` or ``"state_dict"``; or the ``.index.json`` of a file in shards.

    Raises:
        CheckpointError: It is missing, truncated, corrupt, would need code to be executed, or holds something else.
    """
    path = find_weights(path)
    if path.name.endswith(".index.json"):
        tensors, metadata = read_shards(path)
    elif path.suffix == ".safetensors":
        check_digest(path)
        tensors, header = read_safetensors(path)
        metadata = {"header": header}
    else:
        tensors, metadata = unwrap(path, read_pickled(path))
    for key, beside in (("config", "config.json"), ("preprocessor", "preprocessor_config.json")):
        if path.with_name(beside).is_file():
            metadata[key] = read_json(path.with_name(beside))
    return CheckpointFile(tensors=tensors, metadata=metadata)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and the text values in its header.

    Raises:
        CheckpointError: The file is truncated, corrupt, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Clones: what the file gives is the file itself, mapped into memory, and changes when it does.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error


def read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the files that an index names.

    Raises:
        CheckpointError: The index is corrupt, or a file of it is missing, corrupt, or of another download.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(file, str) and file == Path(file).name and Path(file).suffix in (".safetensors", ".bin")
        for file in places.values()
    ):
        raise CheckpointError(
            f"{index}: corrupt index: expected a 'weight_map' of tensors to files beside it"
        )
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        shard = read_checkpoint_file(index.with_name(file)).tensors
        expected = {name for name, place in places.items() if place == file}
        if shard.keys() != expected:
            unlike = listed(sorted(shard.keys() ^ expected))
            raise CheckpointError(
                f"{index}: '{file}' does not hold what the index says ({unlike}); fetch both again"
            )
        tensors |= shard
    return tensors, {}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        CheckpointError: It does not.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt, or no JSON file ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
    return values


def unwrap(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Find the tensors in what a pickled file held, and what is said about them.

    Raises:
        CheckpointError: There are none, or something else is among them.
    """
    metadata: dict[str, Any] = {}
    held = entries(content)
    for wrapper in ("model", "state_dict"):
        if isinstance(held.get(wrapper), dict):
            if isinstance(held.get("meta"), dict):
                metadata["meta"] = entries(held["meta"])
            if isinstance(held.get("args"), Namespace):
                metadata["args"] = vars(held["args"])
            held = entries(held[wrapper])
    if not held:
        raise CheckpointError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}")
    odd = [str(name) for name, value in held.items() if not (isinstance(name, str) and is_plain(value))]
    if odd:
        raise CheckpointError(
            f"{path}: expected names and dense tensors alone, got something else in {listed(odd)}"
        )
    return {name: tensor.detach() for name, tensor in held.items()}, metadata


def entries(value: object) -> dict[Any, Any]:
    """Return a mapping as a plain one: a pickle can replace the methods of others. Empty for what is none."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def is_plain(value: object) -> bool:
    """Tell dense tensors with memory for every element from others, which could grow without bounds when copied."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file in place.

    Raises:
        OSError: It cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:  # the library's own, which says the system's number in words
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
