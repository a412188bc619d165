"""What files of DETR's relatives hold otherwise than we do, beside the names: heads, the neck, denoising's labels.

All under our names. In files each decoder layer has heads, be they one and the same for all, and the proposals' may
be numbered as those of one layer more.
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
"""Where there is this tensor, queries are chosen by proposals."""
MADE = "queries.norm.weight"
"""Where there is this tensor, queries are made of proposals altogether (two-stage Deformable DETR)."""
CLASSES = "decoder.class_heads.0.bias"
LABEL = "denoising.label.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidConversion(Conversion):
    """What files of Deformable DETR and DINO hold otherwise."""

    numbered_proposals: bool = True
    """Whether the proposals' heads have the number after the last layer's."""
    split_neck: bool = False
    """Whether the neck's coarser maps are numbered for themselves, and biases that change nothing left out."""
    spare_label: bool = False
    """Whether denoising has more labels than there are classes, usually one; no object ever has it."""

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file as the model has them."""
        state = gather_heads(join_neck(state))
        if self.spare_label and LABEL in state and CLASSES in state:
            state[LABEL] = state[LABEL][: len(state[CLASSES])].clone()
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors as files have them."""
        state = spread_heads(state, numbered=self.numbered_proposals)
        if self.split_neck:
            state = split_neck(state)
        if self.spare_label and LABEL in state:
            state[LABEL] = torch.cat([state[LABEL], torch.zeros_like(state[LABEL][:1])])
        return state

    def listed_twice(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the heads that move references or choose proposals: the decoder has them, too."""
        if PROPOSED in state:
            return "decoder.box_heads", "decoder.class_heads"
        refines = any(name.startswith("decoder.box_heads.1.") for name in state)
        return ("decoder.box_heads",) if refines else ()


def gather_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the proposals the head after the last layer's, and keep one pair where all layers have the same."""
    layers = count(state, r"decoder\.layers\.(\d+)")
    result = {}
    for name, tensor in state.items():
        head = HEAD.fullmatch(name)
        proposed = head is not None and int(head[2]) == layers
        result[HEAD.sub(r"queries.proposals.\1_head.\3", name) if proposed else name] = tensor
    firsts = {name: HEAD.sub(r"decoder.\1_heads.0.\3", name) for name in result if HEAD.fullmatch(name)}
    alike = all(
        first in result and torch.equal(result[name], result[first]) for name, first in firsts.items()
    )
    if alike and MADE not in result:  # there every layer has its own, though they begin alike
        return {name: tensor for name, tensor in result.items() if firsts.get(name, name) == name}
    return repeat_heads(result, layers)  # transformers keeps one class head of several that are the same


def repeat_heads(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Give every layer a head where there is but one for all."""
    result = dict(state)
    for kind in ("class", "box"):
        if count(state, rf"decoder\.{kind}_heads\.(\d+)") == 1:
            only = [name for name in state if name.startswith(f"decoder.{kind}_heads.0.")]
            for layer in range(1, layers):
                result |= {name.replace(".0.", f".{layer}.", 1): state[name].clone() for name in only}
    return result


def spread_heads(state: Mapping[str, Tensor], *, numbered: bool) -> dict[str, Tensor]:
    """Give every layer a head, and the proposals' the number after the last layer's where they are `numbered`."""
    layers = count(state, r"decoder\.layers\.(\d+)")
    heads = rf"decoder.\1_heads.{layers}" if numbered else r"queries.proposals.\1_head"
    return {
        re.sub(r"^queries\.proposals\.(class|box)_head", heads, name): tensor
        for name, tensor in repeat_heads(state, layers).items()
    }


def join_neck(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number the coarser maps after the backbone's, and give a neck that has no biases such as change nothing."""
    maps = count(state, r"neck\.projections\.(\d+)")
    result = {
        re.sub(r"^neck\.extra\.(\d+)", lambda extra: f"neck.projections.{maps + int(extra[1])}", name): tensor
        for name, tensor in state.items()
    }
    biases = {bias: result[kernel].new_zeros(len(result[kernel])) for kernel, bias in kernels(result).items()}
    return result if biases.keys() & result.keys() else result | biases


def split_neck(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Number the coarser maps for themselves, and leave out biases that change nothing."""
    maps = sum(state[kernel].shape[-1] == 1 for kernel in kernels(state))
    biases = state.keys() & kernels(state).values()
    idle = () if any(bool(state[bias].any()) for bias in biases) else biases

    def number(projection: re.Match[str]) -> str:
        level = int(projection[1])
        return f"neck.projections.{level}" if level < maps else f"neck.extra.{level - maps}"

    return {
        re.sub(r"^neck\.projections\.(\d+)", number, name): tensor
        for name, tensor in state.items()
        if name not in idle
    }


def kernels(names: Collection[str]) -> dict[str, str]:
    """Return the weights of the neck's convolutions, each with the name that its bias has."""
    found = (re.fullmatch(r"(neck\.projections\.\d+\.0)\.weight", name) for name in names)
    return {match[0]: f"{match[1]}.bias" for match in found if match}
