"""The config of MMDetection 3.x, which its checkpoints contain as Python text: settings that tensors do not show.

The text is parsed but not executed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from querybox.arguments import is_number
from querybox.errors import CheckpointError
from querybox.models import Recipe
from querybox.models.recipe import HEADS

WHERE = "the MMDetection config in its 'meta'"
"""The source of these settings, for messages."""
MAX_LENGTH = 1 << 20
"""Characters of a config that is parsed; those of published models have about ten thousand."""
BACKBONE: dict[str, object] = {
    "style": "pytorch",  # the others have their strides in the first convolution of a block
    "strides": (1, 2, 2, 2),
    "dilations": (1, 1, 1, 1),  # MMDetection dilates one convolution more than DETR does
}
"""Settings of a ResNet in the config of which querybox supports one value, that of all published models."""
ACTIVATION: dict[str, object] = {"type": "ReLU"}
"""The same of the activation of encoder and decoder layers."""


def read_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables in the config of a checkpoint; empty if it has none, or none that can be parsed.

    Args:
        metadata: The metadata; see `querybox.checkpoints.files.CheckpointFile`.
    """
    text = metadata.get("meta", {}).get("cfg")
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return {}
    try:
        return {
            statement.targets[0].id: value_of(statement.value)
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def value_of(node: ast.expr) -> Any:
    """Return the value of a literal or of ``dict(key=value)``; other expressions, also inside of these, are None."""
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as number)):
            return -number
        case ast.List(elements):
            return [value_of(each) for each in elements]
        case ast.Tuple(elements):
            return tuple(value_of(each) for each in elements)
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {key.value: value_of(value) for key, value in pairs if isinstance(key, ast.Constant)}
        case ast.Call(ast.Name("dict"), [], keywords):
            return {each.arg: value_of(each.value) for each in keywords}
        case _:
            return None


def inner(config: object, *keys: str) -> dict[str, Any]:
    """Return the dict under these keys, one in the other; empty if there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else {}


def bare_name(value: Any) -> Any:
    """Return the name of a class without its module, which configs of MMEngine's newer style have."""
    return value.rpartition(".")[2] if isinstance(value, str) else value


def settings(config: Mapping[str, Any], kind: type[Recipe]) -> dict[str, Any]:
    """Return those settings of the model in a config that cannot be inferred from shapes.

    Args:
        config: The result of `read_config`.
        kind: The kind of the recipe.

    Raises:
        CheckpointError: The model has a setting that querybox does not support.
    """
    model = inner(config, "model")
    supported: dict[str, dict[str, object]] = {
        "backbone": BACKBONE,
        "positional_encoding": {"temperature": kind.temperature, "offset": kind.offset},
        "data_preprocessor": {"bgr_to_rgb": True},
        "encoder.layer_cfg.ffn_cfg.act_cfg": ACTIVATION,
        "decoder.layer_cfg.ffn_cfg.act_cfg": ACTIVATION,
    }
    for part, values in supported.items():
        for key, expected in values.items():
            value = inner(model, *part.split(".")).get(key, expected)
            if (tuple(value) if isinstance(value, list) else bare_name(value)) != expected:
                raise CheckpointError(
                    f"{WHERE}: '{part}' has {key}={value!r:.200}; querybox supports only {expected!r} for {kind.title}"
                )
    layer = inner(model, "encoder", "layer_cfg")
    known = (
        {"heads": inner(layer, "self_attn_cfg").get("num_heads", HEADS), "dilation": False} if layer else {}
    )
    return known | {
        ours: place[theirs]
        for ours, place, theirs in (
            ("dropout", inner(layer, "ffn_cfg"), "ffn_drop"),
            ("queries", model, "num_queries"),
        )
        if theirs in place
    }


def images(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a config normalises images and resizes those of tests, under the names of `Preprocessing`."""
    stated: dict[str, Any] = {}
    for field in ("mean", "std"):
        values = inner(config, "model", "data_preprocessor").get(field)
        if isinstance(values, list | tuple):
            stated[field] = tuple(values)
    pipeline = config.get("test_pipeline")
    for step in pipeline if isinstance(pipeline, list) else ():
        scale = inner(step).get("scale")
        if (
            str(inner(step).get("type")).endswith("Resize")
            and isinstance(scale, list | tuple)
            and len(scale) == 2
        ):
            width, height = scale
            if not step.get("keep_ratio", False):
                stated |= {"short_side": height, "long_side": width, "resizing": "stretch"}
            elif all(map(is_number, scale)):
                stated |= {"short_side": min(scale), "long_side": max(scale)}
    return stated
