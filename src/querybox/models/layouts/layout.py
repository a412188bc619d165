"""Checkpoint layouts: translation of tensor names and values between querybox and other systems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from querybox.errors import CheckpointError
from querybox.models.tensors import pattern
from querybox.structures import Preprocessing
from querybox.text import listed

PublicSystem = Literal["facebook", "mmdet2", "mmdet3", "huggingface"]
"""Systems with known layouts. "facebook" stands for the authors' code of each kind."""
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
"""Attention projections in querybox and in all other layouts."""
FUSED = ("query", "key", "value")
"""Projections that `torch.nn.MultiheadAttention` combines into one, ``in_proj``."""
SAMPLING = {
    "offset": "sampling_offsets",
    "weight": "attention_weights",
    "value": "value_proj",
    "output": "output_proj",
}
"""Projections of deformable attention in querybox and in all other layouts."""
MASK_HEADS = ("mask_head.", "bbox_attention.")
"""Prefixes of the names of a mask head, which is beside the detector in DETR's segmentation models."""
DETECTOR = "detr."
"""Prefix of the names of the detector in these models."""


class Conversion:
    """Converts tensors whose values or number differ between files and models. The base class changes nothing.

    All names are querybox's.
    """

    def to_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the tensors of a file to those of the model."""
        return state

    def to_theirs(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convert the tensors of the model to those of a file."""
        return state

    def duplicated_modules(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:  # noqa: ARG002 - used by subclasses
        """Return the modules, such as ``decoder.box_heads``, that files contain a second time."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A public checkpoint layout.

    Both translations accept whole checkpoints and parts of them. Tensors are not copied unless they are split or fused.
    """

    name: str
    modules: Mapping[str, str]
    """Names of modules in this layout by those in querybox; ``*`` stands for the number of a layer."""
    mask_head: Mapping[str, str] = field(default_factory=dict)
    """Names of the modules of a mask head, each with one of `MASK_HEADS`; empty if the system has none."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alternative names in some files, with the name in `modules`; applied in order."""
    preprocessing: Preprocessing
    """How the system resizes and normalises images, and whether it clips boxes to the image."""
    fused: bool = True
    """Whether query, key and value projections are combined in one tensor, ``in_proj``."""
    has_num_batches_tracked: bool = True
    """Whether batch norms have ``num_batches_tracked``, which frozen ones do not need."""
    conversion: Conversion = field(default_factory=Conversion)
    """Conversion of tensors, in addition to names."""
    computed: tuple[str, ...] = ()
    """Tensors that files may contain although models compute them, by querybox's name if they have one; they are
    ignored."""
    duplicates_in: str | None = None
    """Module that contains copies of the `Conversion.duplicated_modules`; None if there are none."""
    supported: Mapping[str, object] = field(default_factory=dict)
    """Settings of which the system supports a single value, with this value."""
    class_settings: tuple[str, ...] = ("num_classes",)
    """Settings of the system for the number of rows of the class head."""
    class_rows: int | None = None
    """Rows of the class head, without no-object, in the system's config for COCO; None if files have their settings."""

    def relative(self, modules: Mapping[str, str], **changes: Any) -> Layout:
        """Return the layout of a relative, with different or additional `modules`, and without a mask head."""
        inherited = {ours: theirs for ours, theirs in self.modules.items() if ours not in modules}
        # The first match is used.
        return replace(self, modules={**modules, **inherited}, mask_head={}, **changes)

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the tensors of a file to querybox's names, splitting fused projections.

        Raises:
            CheckpointError: The file has unknown names, which are listed, or two different values of one tensor.
        """
        names = self.our_names(state)
        if unknown := [name for name, ours in names.items() if ours is None]:
            raise CheckpointError(f"{self.name} does not know {listed(unknown)}")
        result: dict[str, Tensor] = {}
        for name, ours in names.items():
            parts = split_projection(ours or "", state[name])
            if any(part in result and not torch.equal(result[part], rows) for part, rows in parts.items()):
                raise CheckpointError(f"'{name}' differs from another copy of the same tensor in the file")
            result |= parts
        for name in [name for name in result if name.endswith(".running_var")]:
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            result.setdefault(counter, torch.zeros((), dtype=torch.int64))
        return self.conversion.to_ours(result)

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Return the names that this layout does not have."""
        return [name for name, ours in self.our_names(names).items() if ours is None]

    def our_names(self, names: Iterable[str]) -> dict[str, str | None]:
        """Return querybox's name of each tensor that is not computed, before projections are split; None if unknown."""
        aliases = [[(pattern(alias), name)] for alias, name in self.aliases.items()]
        modules = {**self.modules, **self.mask_head}
        rules = [(pattern(theirs), ours) for ours, theirs in modules.items()]
        computed = [pattern(name) for name in self.computed]
        result: dict[str, str | None] = {}
        for name in names:
            canonical = name
            for alias in aliases:
                canonical = rename(canonical, alias) or canonical
            ours = rename(canonical, rules)
            if not any(each.match(ours or name) for each in computed):
                result[name] = ours
        return result

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate tensors to the names of this layout, fusing projections if the layout does.

        With a mask head, the names of the detector have the prefix `DETECTOR`, which `to_ours` expects without.

        Raises:
            CheckpointError: The layout has no names for some tensors, which are listed.
        """
        rules = [(pattern(ours), theirs) for ours, theirs in {**self.modules, **self.mask_head}.items()]
        result: dict[str, Tensor] = {}
        unknown: list[str] = []
        duplicated = [
            pattern(module) for module in self.conversion.duplicated_modules(state) if self.duplicates_in
        ]
        duplicates: dict[str, Tensor] = {}
        state = self.conversion.to_theirs(state)
        for name in state:
            if name.endswith(".num_batches_tracked") and not self.has_num_batches_tracked:
                continue
            for ours, tensor in self.fuse(name, state).items():
                theirs = rename(ours, rules)
                if theirs is None:
                    unknown.append(name)
                    continue
                result[theirs] = tensor
                if any(module.match(ours) for module in duplicated):
                    duplicates[f"{self.duplicates_in}.{theirs}"] = tensor
        if unknown:
            raise CheckpointError(f"{self.name} has no name for {listed(unknown)}")
        result |= duplicates
        if not (self.mask_head and any(name.startswith(MASK_HEADS) for name in result)):
            return result
        return {
            name if name.startswith(MASK_HEADS) else f"{DETECTOR}{name}": tensor
            for name, tensor in result.items()
        }

    def fuse(self, name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the name of an attention projection; if fused, key and value are combined with the query."""
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


def split_projection(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Translate a tensor of an attention projection, or split the tensor of all three; other tensors are unchanged."""
    module, fused, kind = name.rpartition(".in_proj_")
    if fused:
        return {
            f"{module}.{part}.{kind}": rows.clone() for part, rows in zip(FUSED, tensor.chunk(3), strict=True)
        }
    for ours, theirs in (*PROJECTIONS.items(), *SAMPLING.items()):
        name = name.replace(f"attention.{theirs}.", f"attention.{ours}.")
    return {name: tensor}


def rename(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """Replace the module prefix of `name` by the first matching rule; return None if there is none."""
    for source, target in rules:
        match = source.match(name)
        if match:
            number = match.group(1) if source.groups else ""
            return target.replace("*", number) + name[match.end() :]
    return None
