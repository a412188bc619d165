"""Copies of models in which modules can be replaced, and the rule of which modules may be."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def copy_modules(model: Model) -> Model:
    """Return a copy of `model` that has modules of its own, but the same parameters and buffers.

    Hooks are copied too. The functions that they call are the same, for a copy of a bound method would be called
    with a copy of its object.
    """
    shared: list[object] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        shared += [function for kind in HOOKS for function in getattr(module, kind).values()]
    return copy.deepcopy(model, {id(each): each for each in shared})


def has_hooks(module: nn.Module) -> bool:
    """Return whether something is called before or after `module`."""
    return any(getattr(module, kind) for kind in HOOKS)


def is_plain(module: nn.Module) -> bool:
    """Return whether a call of `module` runs the forward method of its class and nothing else.

    Whoever replaces it also has to know the class, by its exact type: a subclass may have another forward method, and
    a parametrization makes a subclass.
    """
    return "forward" not in vars(module) and not has_hooks(module)


def replace_leaves(model: nn.Module, table: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Give the plain modules in `model` another class, in place: the one that `table` has for their exact type.

    The new class has the state of the old one and computes the same. A class with a static method ``fits`` takes only
    the modules for which it returns True.
    """
    for module in model.modules():
        faster = table.get(type(module))
        if faster is not None and is_plain(module) and getattr(faster, "fits", is_plain)(module):
            module.__class__ = faster
