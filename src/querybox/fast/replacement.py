"""Copies of models in which modules can be replaced, and the conditions for replacing a module."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
COLLECTIONS = dict, OrderedDict, set
"""Types of a module's hooks, parameters, buffers and children."""
UNCHANGED = type(None), bool, int, float, str
COPYING = "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"
"""Methods by which classes have `copy.deepcopy` copy their objects in another way, besides ``__setstate__``."""


def copy_modules(model: Model) -> Model:
    """Return a copy of `model` with new modules but the same parameters and buffers.

    Hooks are copied, but not the functions that they call, because a copied bound method would be called on a copy
    of its object.
    """
    shared: list[object] = [*model.parameters(), *model.buffers(), *computed_tensors(model)]
    for module in model.modules():
        shared += [function for kind in HOOKS for function in getattr(module, kind).values()]
    memo: dict[int, Any] = {id(each): each for each in shared}
    # Most of what `copy.deepcopy` takes is spent on how to copy each module and its dozen of collections.
    kinds = set(filter(is_copied_as_usual, map(type, model.modules())))
    usual = [module for module in model.modules() if type(module) in kinds]
    for module in usual:
        memo[id(module)] = type(module).__new__(type(module))
    for module in usual:
        vars(memo[id(module)]).update({name: copied(value, memo) for name, value in vars(module).items()})
    return copy.deepcopy(model, memo)


def is_copied_as_usual(kind: type[nn.Module]) -> bool:
    """Return whether copies of modules of a class have copies of the attributes, and nothing else."""
    # Those of PyTorch add attributes that files of early versions lack.
    setting: Any = kind.__setstate__
    return setting.__module__.startswith("torch.nn.modules.") and all(
        getattr(kind, name, None) is getattr(nn.Module, name, None) for name in COPYING
    )


def copied(value: object, memo: dict[int, Any]) -> Any:
    """Return a deep copy of an attribute of a module."""
    if type(value) in UNCHANGED:
        return value
    if type(value) in COLLECTIONS and not value:
        return memo.setdefault(id(value), type(value)())
    return copy.deepcopy(value, memo)


def computed_tensors(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules compute from parameters before each call and keep as attributes.

    `torch.nn.utils.prune`, `torch.nn.utils.spectral_norm` and `torch.nn.utils.weight_norm` have such tensors, which
    `copy.deepcopy` refuses.
    """
    values = (value for module in model.modules() for value in vars(module).values())
    return [value for value in values if isinstance(value, Tensor) and not value.is_leaf]


def has_hooks(module: nn.Module) -> bool:
    """Return whether hooks are registered on `module`."""
    return any(getattr(module, kind) for kind in HOOKS)


def is_plain(module: nn.Module) -> bool:
    """Return whether calling `module` runs only the forward method of its class.

    Callers also have to check the exact type, because a subclass may override the forward method, and
    parametrizations create subclasses.
    """
    return "forward" not in vars(module) and not has_hooks(module)


def replace_leaves(model: nn.Module, table: Mapping[type[nn.Module], type[nn.Module]]) -> None:
    """Change the class of plain modules in `model`, in place, to the one that `table` has for their exact type.

    The new class has the same state and computes the same result. If it has a static method ``fits``, only modules for
    which this returns True are replaced.
    """
    for module in model.modules():
        replacement = table.get(type(module))
        if replacement is not None and is_plain(module) and getattr(replacement, "fits", is_plain)(module):
            module.__class__ = replacement
