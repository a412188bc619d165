"""Names of the same tensor in two layouts, translated both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from querybox.errors import CheckpointError

PARTS = ("query", "key", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A public checkpoint layout whose attention projections are fused, as `torch.nn.MultiheadAttention` has them."""

    name: str
    modules: Mapping[str, str]
    """Our module to theirs; ``*`` stands for a layer's number."""

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename a whole checkpoint to our names, splitting fused projections.

        Raises:
            CheckpointError: A name is none of this layout's; all such are listed.
        """
        rules = [(pattern(theirs), ours) for ours, theirs in self.modules.items()]
        named = {name: rename(name, rules) for name in state}
        unknown = [name for name, ours in named.items() if ours is None]
        if unknown:
            raise CheckpointError(f"no {self.name} checkpoint: it does not know {', '.join(unknown)}")
        result: dict[str, Tensor] = {}
        for name, ours in named.items():
            assert ours is not None
            module, _, leaf = ours.rpartition(".")
            if leaf.startswith("in_proj_"):
                kind = leaf.removeprefix("in_proj_")
                parts = state[name].chunk(3)
                result |= {f"{module}.{part}.{kind}": value for part, value in zip(PARTS, parts, strict=True)}
            else:
                result[ours.replace(".out_proj.", ".output.")] = state[name]
        return result

    def to_theirs(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename our whole state to this layout's names, fusing the projections of attention."""
        rules = [(pattern(ours), theirs) for ours, theirs in self.modules.items()]
        result: dict[str, Tensor] = {}
        for name, tensor in state.items():
            ours = name.replace("attention.output.", "attention.out_proj.")
            split = re.fullmatch(r"(.*attention)\.query\.(weight|bias)", name)
            if split:
                module, kind = split.groups()
                ours = f"{module}.in_proj_{kind}"
                tensor = torch.cat([state[f"{module}.{part}.{kind}"] for part in PARTS])
            elif re.search(r"attention\.(key|value)\.", name):
                continue
            theirs = rename(ours, rules)
            assert theirs is not None, f"our own name {name} has no rule"
            result[theirs] = tensor
        return result


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
