"""Modules on the meta device, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class WithoutValues(TorchFunctionMode):
    """Passes over random and constant initial values, which tensors on the meta device do not have."""

    FILLS = frozenset(
        {
            *(Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_),
            *(nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_),
        }
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, unless it fills a tensor."""
        if func in self.FILLS:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context manager in which modules are built on the meta device."""
    with torch.device("meta"), WithoutValues():
        yield
