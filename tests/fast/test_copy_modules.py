"""Copies of modules, which share parameters, buffers and the functions of hooks with the modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from querybox.fast.replacement import copy_modules, has_hooks


def test_each_module_of_a_copy_has_hooks_of_its_own() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    copied = copy_modules(model)
    copied[0].register_forward_hook(lambda *call: call[2])
    copied[0].register_buffer("steps", torch.zeros(1), persistent=False)
    assert [has_hooks(module) for module in (*copied, *model)] == [True, False, False, False]
    assert [len(list(module.buffers())) for module in (*copied, *model)] == [1, 0, 0, 0]
    assert [len(module._non_persistent_buffers_set) for module in (*copied, *model)] == [1, 0, 0, 0]


def test_copies_are_those_of_the_classes() -> None:
    """As `copy.deepcopy` makes them, but for parameters and buffers."""

    class Counted(nn.Linear):
        def __getstate__(self) -> dict[str, Any]:
            return {**vars(self), "state": "got"}

    class Restored(nn.Linear):
        def __setstate__(self, state: dict[str, Any]) -> None:
            vars(self).update(state, state="set")

    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), Counted(2, 2), Restored(2, 2))
    model.append(model[0])
    model[0].parent, model[0].settings = [model], {"a": [1]}
    model[0].nothing = model[1].nothing = {}
    copied = copy_modules(model)
    for ours, theirs in zip(copied, copy.deepcopy(model), strict=True):
        assert (type(ours), vars(ours).keys()) == (type(theirs), vars(theirs).keys())
    assert [getattr(module, "state", "") for module in copied] == ["", "got", "set", ""]
    assert copied[3] is copied[0] is not model[0]
    assert copied[0].parent == [copied]
    assert copied[0].nothing is copied[1].nothing is not model[0].nothing
    copied[0].settings["a"].append(2)
    assert model[0].settings == {"a": [1]}
    assert all(ours is theirs for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True))
