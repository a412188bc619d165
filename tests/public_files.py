"""Names and shapes of the tensors in public files of RT-DETR and its relatives, and random files of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

Names = Iterator[tuple[str, list[int]]]


def norm(name: str, width: int, *, frozen: bool = False) -> Names:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", [width]
    if not frozen:
        yield f"{name}.num_batches_tracked", []


def conv(name: str, inputs: int, outputs: int, side: int, *, groups: int = 1, frozen: bool = False) -> Names:
    yield f"{name}.conv.weight", [outputs, inputs // groups, side, side]
    yield from norm(f"{name}.norm", outputs, frozen=frozen)


def linear(name: str, inputs: int, outputs: int) -> Names:
    yield f"{name}.weight", [outputs, inputs]
    yield f"{name}.bias", [outputs]


def layer_norms(width: int, *names: str) -> Names:
    for name in names:
        yield f"{name}.weight", [width]
        yield f"{name}.bias", [width]


def attention(name: str, width: int) -> Names:
    yield f"{name}.in_proj_weight", [3 * width, width]
    yield f"{name}.in_proj_bias", [3 * width]
    yield from linear(f"{name}.out_proj", width, width)


def random_file(names: Names, constants: Mapping[str, float | Tensor]) -> dict[str, Tensor]:
    """Return random tensors; `constants` are the values of those whose names end in its keys."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(shape, generator=generator) for name, shape in names}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1234)
        for ending, value in constants.items():
            if name.endswith(ending):
                tensor.copy_(torch.as_tensor(value))
    state["decoder.denoising_class_embed.weight"][-1] = 0  # of no class
    return state
