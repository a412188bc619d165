"""The metadata of public checkpoints: settings, class names, image sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from querybox.arguments import is_number
from querybox.checkpoints import mmdet_config
from querybox.checkpoints.hub import CONFIG, PREPROCESSOR
from querybox.data.parsing import validation_problem
from querybox.errors import CheckpointError
from querybox.models import Recipe
from querybox.models.recipe import require
from querybox.settings import holds_bool, type_adapter
from querybox.structures import Preprocessing

SUPPORTED: dict[str, object] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 2,
}
"""Settings in `PREPROCESSOR` of which querybox supports only these values; 2 is bilinear."""
STUFF_ROWS = "stuff_rows"
"""Key of `config.json` with the rows of classes of stuff, for which Hugging Face has none."""
ARGUMENTS = {"heads": "nheads", "dilation": "dilation", "dropout": "dropout", "queries": "num_queries"}
"""Settings, and their names among the arguments that the authors' code saves with the weights."""


def stated_settings(metadata: Mapping[str, Any], kind: type[Recipe]) -> dict[str, Any]:
    """Return those settings in the metadata that cannot be inferred from shapes.

    Args:
        metadata: The metadata; see `querybox.checkpoints.files.CheckpointFile`.
        kind: The kind of the recipe.

    Raises:
        CheckpointError: The metadata have a setting that querybox does not support.
    """
    config = metadata.get("config", {})
    if config.get("model_type") == kind.huggingface_type:
        return kind.settings_from_config(config)
    if variables := mmdet_config.read_config(metadata):
        return mmdet_config.settings(variables, kind)
    args = metadata.get("args", {})
    for name, expected in kind.supported_arguments.items():
        if args.get(name, expected) != expected:
            raise CheckpointError(
                f"its training options have {name}={args[name]!r:.200}; querybox supports only {expected!r} for "
                f"{kind.title}"
            )
    return {setting: args[theirs] for setting, theirs in ARGUMENTS.items() if theirs in args}


def stated_names(metadata: Mapping[str, Any]) -> list[str] | None:
    """Return the class names by row of the class head; None if the checkpoint has none."""
    meta = metadata.get("meta", {})
    dataset_meta = meta.get("dataset_meta") or {}
    names = dataset_meta.get("classes") or dataset_meta.get("CLASSES") or meta.get("CLASSES")
    if names is not None:
        return [names] if isinstance(names, str) else [str(name) for name in names]
    labels = metadata.get("config", {}).get("id2label") or {}
    names = [str(labels[row]) for row in sorted(labels, key=int)]
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return None if placeholders else names


def stated_stuff(metadata: Mapping[str, Any]) -> frozenset[int]:
    """Return the rows of the class head that are stuff, which only querybox states in a Hugging Face folder.

    Raises:
        CheckpointError: They are not numbers of rows.
    """
    rows = metadata.get("config", {}).get(STUFF_ROWS, [])
    if not (isinstance(rows, list) and all(type(row) is int for row in rows)):
        raise CheckpointError(
            f"{CONFIG}: '{STUFF_ROWS}' is {rows!r:.200}; expected a list of rows of the class head"
        )
    return frozenset(rows)


def stated_preprocessing(usual: Preprocessing, metadata: Mapping[str, Any]) -> Preprocessing:
    """Return the image preprocessing of a checkpoint.

    Args:
        usual: The preprocessing of its layout, for what neither a Hugging Face folder nor the config of MMDetection
            states.
        metadata: The metadata; see `querybox.checkpoints.files.CheckpointFile`.

    Raises:
        CheckpointError: A value is invalid, or images are preprocessed in an unsupported way.
    """
    config = metadata.get("preprocessor", {})
    require(config, PREPROCESSOR, **SUPPORTED)
    images = mmdet_config.images(mmdet_config.read_config(metadata))
    where = mmdet_config.WHERE if images else PREPROCESSOR
    try:
        return type_adapter(Preprocessing).validate_python(
            {**asdict(usual), **images, **stated_images(config)}
        )
    except ValidationError as error:
        raise CheckpointError(f"{where}: {validation_problem(error)}") from error


def stated_images(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a Hugging Face ``preprocessor_config.json``.

    Raises:
        CheckpointError: Images are resized in an unsupported way.
    """
    stated: dict[str, Any] = {}
    for field in ("mean", "std"):
        values = config.get(key := f"image_{field}")
        if values is not None:
            if not isinstance(values, list) or not all(map(is_number, values)):
                raise CheckpointError(f"{PREPROCESSOR}: '{key}' is {values!r:.200}; expected three numbers")
            stated[field] = tuple(255 * value for value in values)
    if not config.get("do_normalize", True):
        stated = {"mean": (0.0,) * 3, "std": (255.0,) * 3}
    size = config.get("size", {})
    if isinstance(size, int) and is_number(size):  # early files
        size = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
    if not isinstance(size, dict) or holds_bool([*size.values()]):
        raise CheckpointError(
            f"{PREPROCESSOR}: 'size' is {size!r}; expected an object of numbers, or a number"
        )
    if size.keys() >= {"height", "width"}:
        stated |= {"short_side": size["height"], "long_side": size["width"], "resizing": "stretch"}
    elif size.keys() >= {"shortest_edge", "longest_edge"}:
        stated |= {"short_side": size["shortest_edge"], "long_side": size["longest_edge"]}
    elif size:
        raise CheckpointError(
            f"{PREPROCESSOR}: 'size' is {size}; expected 'shortest_edge' and 'longest_edge', or 'height' and "
            "'width'"
        )
    return stated
