"""Conversion of tensors that files of Deformable DETR and DINO contain in another form: heads, neck, denoising labels.

All names are querybox's. In files each decoder layer has its own copy of the heads even if they are shared, and the
heads of the proposals may be numbered like those of an additional layer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from querybox.models.layouts.layout import Conversion
from querybox.models.tensors import count

HEAD = re.compile(r"decoder\.(class|box)_heads\.(\d+)\.(.+)")
PROPOSED = "queries.proposals.norm.weight"
"""This tensor exists if queries are selected from proposals."""
FULLY_PROPOSED = "queries.norm.weight"
"""This tensor exists if queries are made entirely from proposals (two-stage Deformable DETR)."""
CLASSES = "decoder.class_heads.0.bias"
LABEL = "denoising.label.weight"
CONTENT = "queries.content"
"""This tensor exists in DINO alone, which has denoising."""
PUBLISHED_QUERIES = {"distinct": False, "token_content": False}
"""Settings of DINO's queries that other systems support."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidConversion(Conversion):
    """Conversion of the tensors of Deformable DETR and DINO."""

    proposals_after_layers: bool = True
    """Whether the heads of the proposals are numbered after those of the last layer."""
    split_neck: bool = False
    """Whether the additional levels of the neck are numbered separately, and zero biases are omitted."""
    extra_label: bool = False
    """Whether denoising has more labels than there are classes, usually one more, which is not used."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the tensors of a file to those of the model."""
        state = gather_heads(join_neck(state))
        if CONTENT in state and CLASSES in state:
            classes = len(state[CLASSES])
            if LABEL not in state:  # a model that was trained without denoising
                state[LABEL] = state[CONTENT].new_zeros(classes, state[CONTENT].shape[1])
            elif self.extra_label:
                state[LABEL] = state[LABEL][:classes].clone()
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert the tensors of the model to those of a file."""
        state = spread_heads(state, numbered=self.proposals_after_layers)
        if self.split_neck:
            state = split_neck(state)
        return with_extra_label(state) if self.extra_label else state

    def duplicated_modules(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the heads used for refinement or proposals, which files also contain as parts of the decoder."""
        if PROPOSED in state:
            return "decoder.box_heads", "decoder.class_heads"
        refines = any(name.startswith("decoder.box_heads.1.") for name in state)
        return ("decoder.box_heads",) if refines else ()


def with_extra_label(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a denoising label of zeros, if there are labels."""
    labels = state.get(LABEL)
    if labels is None:
        return dict(state)
    return {**state, LABEL: torch.cat([labels, torch.zeros_like(labels[:1])])}


def gather_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the heads after the last layer's to those of the proposals, and keep one pair if all layers share it."""
    layers = count(state, r"decoder\.layers\.(\d+)")
    result = {}
    for name, tensor in state.items():
        head = HEAD.fullmatch(name)
        proposed = head is not None and int(head[2]) == layers
        result[HEAD.sub(r"queries.proposals.\1_head.\3", name) if proposed else name] = tensor
    firsts = {name: HEAD.sub(r"decoder.\1_heads.0.\3", name) for name in result if HEAD.fullmatch(name)}
    shared = all(
        first in result and torch.equal(result[name], result[first]) for name, first in firsts.items()
    )
    # Two-stage models have heads per layer, though initially equal.
    if shared and FULLY_PROPOSED not in result:
        return {name: tensor for name, tensor in result.items() if firsts.get(name, name) == name}
    return repeat_heads(result, layers)  # transformers saves only one of several shared class heads


def repeat_heads(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Copy shared heads to every layer."""
    result = dict(state)
    for kind in ("class", "box"):
        if count(state, rf"decoder\.{kind}_heads\.(\d+)") == 1:
            only = [name for name in state if name.startswith(f"decoder.{kind}_heads.0.")]
            for layer in range(1, layers):
                result |= {name.replace(".0.", f".{layer}.", 1): state[name].clone() for name in only}
    return result


def spread_heads(state: Mapping[str, Tensor], *, numbered: bool) -> dict[str, Tensor]:
    """Copy shared heads to every layer, and number the heads of the proposals after the last layer's if `numbered`."""
    layers = count(state, r"decoder\.layers\.(\d+)")
    heads = rf"decoder.\1_heads.{layers}" if numbered else r"queries.proposals.\1_head"
    return {
        re.sub(r"^queries\.proposals\.(class|box)_head", heads, name): tensor
        for name, tensor in repeat_heads(state, layers).items()
    }


def join_neck(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number additional levels after the backbone's, and add zero biases if the neck has none."""
    maps = count(state, r"neck\.projections\.(\d+)")
    result = {
        re.sub(r"^neck\.extra\.(\d+)", lambda extra: f"neck.projections.{maps + int(extra[1])}", name): tensor
        for name, tensor in state.items()
    }
    biases = {bias: result[kernel].new_zeros(len(result[kernel])) for kernel, bias in kernels(result).items()}
    return result if biases.keys() & result.keys() else result | biases


def split_neck(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number additional levels separately, and omit the biases if all are zero."""
    maps = sum(state[kernel].shape[-1] == 1 for kernel in kernels(state))
    biases = state.keys() & kernels(state).values()
    omitted = () if any(bool(state[bias].any()) for bias in biases) else biases

    def number(projection: re.Match[str]) -> str:
        level = int(projection[1])
        return f"neck.projections.{level}" if level < maps else f"neck.extra.{level - maps}"

    return {
        re.sub(r"^neck\.projections\.(\d+)", number, name): tensor
        for name, tensor in state.items()
        if name not in omitted
    }


def kernels(names: Collection[str]) -> dict[str, str]:
    """Return the names of the weights of the neck's convolutions, each with the name of its bias."""
    matches = (re.fullmatch(r"(neck\.projections\.\d+\.0)\.weight", name) for name in names)
    return {match[0]: f"{match[1]}.bias" for match in matches if match}
