"""What the names and shapes of a detector's tensors tell of its recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from querybox.errors import CheckpointError

MADE = "queries.norm.weight"
"""Where there is this tensor, queries are made of proposals altogether (two-stage Deformable DETR)."""
BOTTLENECK = "backbone.body.layer1.0.conv3.weight"
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18.tv_in1k",
    (False, (3, 4, 6, 3)): "resnet34.tv_in1k",
    (True, (3, 4, 6, 3)): "resnet50.tv_in1k",
    (True, (3, 4, 23, 3)): "resnet101.tv_in1k",
    (True, (3, 8, 36, 3)): "resnet152.tv_in1k",
}
"""ResNets (He et al. 2016, table 1) by whether their blocks are bottlenecks, and how many each stage has."""


def infer_settings(state: Mapping[str, Tensor], kind: str = "detr", *, heads: int = 8) -> dict[str, Any]:
    """Return all settings of the recipe that our `state` shows.

    Dilation and heads leave no trace in it, nor does the number of queries that are all made of proposals.

    Args:
        state: All tensors.
        kind: Of the recipe.
        heads: Of attention; deformable attention shows how many points they look at together.

    Raises:
        CheckpointError: A tensor that would show a setting is missing, or the backbone is no ResNet that is known.
    """
    try:
        return {
            "kind": kind,
            "backbone": infer_backbone(state),
            "feedforward": state["decoder.layers.0.feedforward.0.weight"].shape[0],
            "encoder_layers": count(state, r"encoder\.layers\.(\d+)"),
            "decoder_layers": count(state, r"decoder\.layers\.(\d+)"),
            **(infer_detr(state) if kind == "detr" else infer_relative(state, kind, heads)),
        }
    except KeyError as error:
        raise CheckpointError(f"no whole checkpoint: '{error.args[0]}' is missing") from error


def infer_detr(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the settings that only DETR has, or shows in this way."""
    queries, width = state["queries.position"].shape
    return {
        "position": "learned" if "encoder.position.rows" in state else "sine",
        "width": width,
        "norm_first": "encoder.norm.weight" in state,
        "queries": queries,
    }


def infer_relative(state: Mapping[str, Tensor], kind: str, heads: int) -> dict[str, Any]:
    """Return the settings that only its relatives have, or show in this way."""
    levels, width = state["encoder.level"].shape
    kernels = [state[f"neck.projections.{level}.0.weight"] for level in range(levels)]
    # The deepest map has the most channels, and every one before it half as many.
    deepest = state["backbone.body.layer4.0.downsample.0.weight"].shape[0]
    own_heads = "decoder.class_heads.1.bias" in state
    settings = {
        "width": width,
        "levels": levels,
        "points": len(state["decoder.layers.0.cross_attention.weight.bias"]) // (heads * levels),
        "strides": tuple(32 * kernel.shape[1] // deepest for kernel in kernels if kernel.shape[-1] == 1),
    }
    if kind == "dino":
        return {**settings, "queries": len(state["queries.content"]), "share_heads": not own_heads}
    if MADE in state:
        return {**settings, "refine": True, "two_stage": True}
    return {**settings, "queries": len(state["queries.embedding"]), "refine": own_heads}


def infer_backbone(names: Iterable[str]) -> str:
    """Return timm's name of the ResNet that has tensors of these names.

    Raises:
        CheckpointError: It is none of `RESNETS`.
    """
    names = list(names)
    blocks = tuple(count(names, rf"backbone\.body\.layer{stage}\.(\d+)") for stage in (1, 2, 3, 4))
    name = RESNETS.get((BOTTLENECK in names, blocks))
    if name is None:
        raise CheckpointError(
            f"unknown backbone: expected a ResNet-18, 34, 50, 101 or 152, got {list(blocks)} blocks in its stages"
        )
    return name


def count(names: Iterable[str], pattern: str) -> int:
    """Return how many different numbers there are where `pattern` has its group."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})
