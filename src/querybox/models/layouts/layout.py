"""Names of the same tensor in two layouts, translated both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from querybox.errors import CheckpointError
from querybox.structures import Resizing

PublicSystem = Literal["facebook", "mmdet2", "mmdet3", "huggingface"]
"""Whose layouts are known. "facebook" stands for the authors' own code, whoever they are."""
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
"""Our projections of attention to theirs; every layout says the same."""
FUSED = ("query", "key", "value")
"""Those that `torch.nn.MultiheadAttention` keeps as one, ``in_proj``."""
SAMPLING = {
    "offset": "sampling_offsets",
    "weight": "attention_weights",
    "value": "value_proj",
    "output": "output_proj",
}
"""The same for deformable attention."""


class Conversion:
    """Changes tensors where files hold them otherwise than the model does, beside the names; this one changes nothing.

    All names are ours.
    """

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file as the model has them."""
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the model's tensors as files have them."""
        return state

    def listed_twice(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:  # noqa: ARG002 - for others
        """Return which of the model's modules, such as ``decoder.box_heads``, files list a second time."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A public checkpoint layout: its names for our modules.

    Both translations take whole checkpoints and parts of one. Tensors that stay whole are not copied.
    """

    name: str
    modules: Mapping[str, str]
    """Our module to theirs; ``*`` stands for a layer's number."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """What some files say in place of a name in `modules`; each is looked for in turn."""
    resizing: Resizing
    """How its images are resized."""
    clip_boxes: bool
    """Whether its boxes are cut to the image."""
    fused: bool = True
    """Whether query, key and value projections are one tensor, ``in_proj``."""
    counts_batches: bool = True
    """Whether batch norms have ``num_batches_tracked``, which frozen ones do without."""
    conversion: Conversion = field(default_factory=Conversion)
    """What files hold otherwise, beside the names."""
    second_place: str | None = None
    """Module in which files list a second time what the conversion says; None: nothing."""
    class_settings: tuple[str, ...] = ("num_classes",)
    """Settings of its system that say how many rows the class head has."""

    def relative(self, modules: Mapping[str, str], **changes: Any) -> Layout:
        """Return the layout of a relative: `modules` are those that it has otherwise, or beside."""
        known = {ours: theirs for ours, theirs in self.modules.items() if ours not in modules}
        # The first name that fits is taken.
        return replace(self, modules={**modules, **known}, **changes)

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename tensors to our names, splitting fused projections.

        Raises:
            CheckpointError: A name is none of this layout's; all such are listed.
        """
        others = [[(pattern(other), usual)] for other, usual in self.other_names.items()]
        rules = [(pattern(theirs), ours) for ours, theirs in self.modules.items()]
        result: dict[str, Tensor] = {}
        unknown: list[str] = []
        for name, tensor in state.items():
            usual = name
            for other in others:
                usual = rename(usual, other) or usual
            ours = rename(usual, rules)
            parts = {} if ours is None else split(ours, tensor)
            if ours is None:
                unknown.append(name)
            elif any(part in result and not torch.equal(result[part], rows) for part, rows in parts.items()):
                raise CheckpointError(f"'{name}' is not what the file has for the same tensor elsewhere")
            result |= parts
        if unknown:
            raise CheckpointError(f"{self.name} does not know {', '.join(unknown)}")
        for name in [name for name in result if name.endswith(".running_var")]:
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            result.setdefault(counter, torch.zeros((), dtype=torch.int64))
        return self.conversion.to_ours(result)

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our tensors to this layout's names, fusing projections where it does.

        Raises:
            CheckpointError: This layout has no name for a tensor; all such are listed.
        """
        rules = [(pattern(ours), theirs) for ours, theirs in self.modules.items()]
        result: dict[str, Tensor] = {}
        unknown: list[str] = []
        twice = [pattern(module) for module in self.conversion.listed_twice(state) if self.second_place]
        again: dict[str, Tensor] = {}
        state = self.conversion.to_theirs(state)
        for name in state:
            if name.endswith(".num_batches_tracked") and not self.counts_batches:
                continue
            for ours, tensor in self.fuse(name, state).items():
                theirs = rename(ours, rules)
                if theirs is None:
                    unknown.append(name)
                    continue
                result[theirs] = tensor
                if any(module.match(ours) for module in twice):
                    again[f"{self.second_place}.{theirs}"] = tensor
        if unknown:
            raise CheckpointError(f"{self.name} has no name for {', '.join(unknown)}")
        return result | again

    def fuse(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name one of our tensors as attention does here, still in our module; key and value go with the query."""
        match = re.fullmatch(r"(.*attention)\.(query|key|value|output|offset|weight)\.(weight|bias)", name)
        if match is None:
            return {name: state[name]}
        module, part, kind = match.groups()
        if f"{module}.offset.{kind}" in state:
            return {f"{module}.{SAMPLING[part]}.{kind}": state[name]}
        if not self.fused or part == "output" or f"{module}.query.{kind}" not in state:
            return {f"{module}.{PROJECTIONS[part]}.{kind}": state[name]}
        if part != "query":
            return {}
        return {f"{module}.in_proj_{kind}": torch.cat([state[f"{module}.{each}.{kind}"] for each in FUSED])}


def split(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Give a tensor, already in our module, the names of our projections where it is one or all of them."""
    module, fused, kind = name.rpartition(".in_proj_")
    if fused:
        return {
            f"{module}.{part}.{kind}": rows.clone() for part, rows in zip(FUSED, tensor.chunk(3), strict=True)
        }
    for ours, theirs in (*PROJECTIONS.items(), *SAMPLING.items()):
        name = name.replace(f"attention.{theirs}.", f"attention.{ours}.")
    return {name: tensor}


def pattern(module: str) -> re.Pattern[str]:
    """Match names within a module whose name may hold ``*`` for a number."""
    return re.compile(re.escape(module).replace(r"\*", r"(\d+)") + r"(?=\.|$)")


def rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """Replace the module that begins `name` by the first rule that knows it; None where none does."""
    for source, target in rules:
        match = source.match(name)
        if match:
            number = match.group(1) if source.groups else ""
            return target.replace("*", number) + name[match.end() :]
    return None
