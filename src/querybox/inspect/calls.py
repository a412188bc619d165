"""Inputs, outputs and times of a model's modules, recorded with forward hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from time import perf_counter
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module."""

    inputs: Mapping[str, Any]
    """Arguments by the parameter names of the module's `forward`."""
    output: Any
    seconds: float


@contextmanager
def recorded(modules: Mapping[str, nn.Module], device: torch.device) -> Iterator[dict[str, list[Call]]]:
    """Record every call of `modules` within the context, by their names in the mapping.

    Tensors are kept, not copied. The device is synchronised before and after each call, so that its time is its own.
    """
    calls: dict[str, list[Call]] = defaultdict(list)
    starts: list[float] = []  # of running calls; modules may be nested

    def before(_: nn.Module, __: tuple[Any, ...]) -> None:
        starts.append(now(device))

    def after(
        name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        seconds = now(device) - starts.pop()
        inputs = signature(module.forward).bind(*args, **kwargs).arguments
        calls[name].append(Call(inputs=inputs, output=output, seconds=seconds))

    hooks = [module.register_forward_pre_hook(before) for module in modules.values()]
    hooks += [
        module.register_forward_hook(partial(after, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def now(device: torch.device) -> float:
    """Return the time in seconds after the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return perf_counter()
