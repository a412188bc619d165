"""What a public checkpoint states beside its tensors: settings, class names, image sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from querybox.errors import CheckpointError


def stated_settings(metadata: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the settings of the recipe that no shape shows, where the checkpoint states them.

    Args:
        metadata: As `querybox.checkpoints.files.CheckpointFile` has it.
        kind: Of the recipe.

    Raises:
        CheckpointError: It states something that querybox has no setting for.
    """
    config = metadata.get("config", {})
    if config.get("model_type") == kind:  # it is called the same there
        return stated_in_config(config)
    args = metadata.get("args", {})
    named = {"heads": "nheads", "dilation": "dilation", "dropout": "dropout", "queries": "num_queries"}
    return {setting: args[theirs] for setting, theirs in named.items() if theirs in args}


def stated_in_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a Hugging Face config states of DETR or Deformable DETR."""
    require(config, "activation_function", "relu")
    heads = config.get("encoder_attention_heads", 8)
    require(config, "decoder_attention_heads", heads)
    stated = {
        "heads": heads,
        "dilation": config.get("dilation", False) or backbone_stride(config) == 16,
        "dropout": config.get("dropout", 0.1),
    }
    if config["model_type"] == "detr":
        return {**stated, "norm_between": config.get("auxiliary_loss", False)}
    require(config, "position_embedding_type", "sine")
    return {**stated, "queries": config.get("two_stage_num_proposals", 300)}


def require(config: Mapping[str, Any], key: str, expected: object) -> None:
    """Raise CheckpointError if the config states another value."""
    if config.get(key, expected) != expected:
        raise CheckpointError(f"config.json: '{key}' is {config[key]!r}; querybox reads {expected!r} alone")


def backbone_stride(config: Mapping[str, Any]) -> object:
    """Return the stride of the backbone's last stage, as transformers 5 states it; None where it does not."""
    return (config.get("backbone_config") or {}).get("output_stride")


def stated_names(metadata: Mapping[str, Any]) -> list[str] | None:
    """Return the name of each class, by row of the class head; None where the checkpoint has none."""
    meta = metadata.get("meta", {})
    of_data = meta.get("dataset_meta") or {}
    names = of_data.get("classes") or of_data.get("CLASSES") or meta.get("CLASSES")
    if names is not None:
        return [names] if isinstance(names, str) else [str(name) for name in names]
    labels = metadata.get("config", {}).get("id2label") or {}
    names = [str(labels[row]) for row in sorted(labels, key=int)]
    placeholders = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return None if placeholders else names


def stated_images(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a Hugging Face folder states of the preprocessing of images.

    Raises:
        CheckpointError: Images are not resized by their sides.
    """
    config = metadata.get("preprocessor", {})
    stated: dict[str, Any] = {
        field: tuple(255 * value for value in config[f"image_{field}"])
        for field in ("mean", "std")
        if f"image_{field}" in config
    }
    size = config.get("size", {})
    if isinstance(size, int):  # early files
        size = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
    if size:
        try:
            stated |= {"short_side": size["shortest_edge"], "long_side": size["longest_edge"]}
        except KeyError as error:
            raise CheckpointError(
                f"preprocessor_config.json: 'size' is {size}; expected 'shortest_edge' and 'longest_edge'"
            ) from error
    return stated
