"""What tests of conversions have in common: tiny models, and tensors for them."""

from __future__ import annotations

import torch
from tiny_models import PUBLIC
from torch import Tensor

from querybox.checkpoints.convert import System
from querybox.models import Recipe
from querybox.modules.meta import shapes_only
from querybox.structures import Category

TINY = {**PUBLIC, "width": 8, "heads": 2, "feedforward": 12, "queries": 5}
TARGETS: dict[System, str] = {
    "facebook": "facebook.pth",
    "mmdet2": "mmdet2.pth",
    "mmdet3": "mmdet3.pth",
    "huggingface": "huggingface",
    "querybox": "querybox.safetensors",
}
"""Where to convert to, by system."""


def identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def random_state(recipe: Recipe, classes: int, *, tiny_backbone: bool = False) -> dict[str, Tensor]:
    """All tensors of a model, without the time that its initialisation takes."""
    with shapes_only():
        wanted = recipe.build([Category(id=label, name=str(label)) for label in range(classes)]).state_dict()
    return {
        name: torch.zeros((), dtype=torch.int64)
        if name.endswith("num_batches_tracked")
        else torch.randn(1 if tiny_backbone and name.startswith("backbone.") else tensor.shape)
        for name, tensor in wanted.items()
    }
