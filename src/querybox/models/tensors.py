"""Inference of a detector's properties from the names of its tensors, for all kinds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from querybox.errors import CheckpointError

BOTTLENECK = "backbone.body.layer1.0.conv3.weight"
DEEP_STEM = "backbone.body.conv1.3.weight"
"""Second convolution in the stem of a ResNet-vd."""
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""timm's ResNets (He et al. 2016, table 1) by whether they have bottleneck blocks, and their blocks per stage."""


def infer_backbone(names: Iterable[str]) -> str:
    """Return timm's name of the ResNet, or the ResNet-vd, with these tensor names.

    Raises:
        CheckpointError: It is not one of `RESNETS`.
    """
    names = list(names)
    blocks = tuple(count(names, rf"backbone\.body\.layer{stage}\.(\d+)") for stage in (1, 2, 3, 4))
    name = RESNETS.get((BOTTLENECK in names, blocks))
    if name is None:
        own = next((each for each in names if each.startswith("backbone.")), "none")
        found = f"{list(blocks)} blocks in its stages" if any(blocks) else f"tensors such as {own}"
        raise CheckpointError(f"unknown backbone: expected a ResNet-18, 34, 50, 101 or 152, got {found}")
    return f"{name}d.ra2_in1k" if DEEP_STEM in names else f"{name}.tv_in1k"


def deepest_channels(state: Mapping[str, Tensor]) -> int:
    """Return the number of channels of the backbone's last feature map, the most that a tensor of it has."""
    sizes = (each.shape[0] for name, each in state.items() if name.startswith("backbone.body.") and each.ndim)
    return max(sizes)


def count(names: Iterable[str], pattern: str) -> int:
    """Return the number of distinct values of the first group of `pattern` in matching names."""
    return len({match[1] for match in map(re.compile(pattern).match, names) if match})


def tensors_of(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return the names that belong to one of `modules`, in which ``*`` stands for a number."""
    patterns = [pattern(module) for module in modules]
    return [name for name in names if any(each.match(name) for each in patterns)]


def pattern(module: str) -> re.Pattern[str]:
    """Return a pattern for names within a module, in which ``*`` stands for a number."""
    return re.compile(re.escape(module).replace(r"\*", r"(\d+)") + r"(?=\.|$)")
