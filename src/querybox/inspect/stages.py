"""The outputs of every stage for one image, taken from the recorded calls of the model's modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from querybox.inspect.calls import Call
from querybox.inspect.comparison import Comparison
from querybox.structures import DetectorOutput, ImageBatch, Queries

Calls = Mapping[str, Sequence[Call]]
T = TypeVar("T")
HEADS = ("", "stage", "shape", "dtype", "min", "max", "ms")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """An output of one stage."""

    number: int
    """Number of the stage in the anatomy in the documentation: 0 (images) to 12 (inference). 11, the optimizer step,
    exists only in training."""
    name: str
    value: Tensor
    seconds: float | None = None
    """Time to compute it; None if it was computed together with another one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        """Data type of the value, such as ``"float32"``."""
        return str(self.value.dtype).removeprefix("torch.")

    @property
    def range(self) -> tuple[float, float] | None:
        """Minimum and maximum of the value; None if it is empty."""
        return (float(self.value.min()), float(self.value.max())) if self.value.numel() else None

    def row(self) -> list[str]:
        """Return the stage as a row of a table with the columns `HEADS`."""
        low, high = (f"{value:.4g}" for value in self.range) if self.range else ("", "")
        time = "" if self.seconds is None else f"{1000 * self.seconds:.2f}"
        return [str(self.number), self.name, " x ".join(map(str, self.shape)), self.dtype, low, high, time]


def encoder_stages(calls: Calls, batch: ImageBatch) -> Iterator[Stage]:
    """Yield stages 1 to 5, from pixels to memory; each feature map is a stage of its own."""
    yield from of_maps(1, "features", calls, "backbone")
    yield Stage(number=2, name="padding mask of the image", value=batch.padding_mask)
    positions = calls.get("encoder.position", [])
    for name, call in named("padding mask of the map", positions):
        yield Stage(number=2, name=name, value=call.inputs["padding_mask"])
    yield from of_maps(3, "projection", calls, "neck")
    for name, call in named("positional encoding", positions):
        yield Stage(number=4, name=name, value=call.output, seconds=call.seconds)
    yield from of_layers(5, "encoder", calls)
    memory = calls["encoder"][0].output
    yield Stage(number=5, name="memory", value=memory.tokens)


def decoder_stages(calls: Calls, output: DetectorOutput) -> Iterator[Stage]:
    """Yield stages 6 and 7, from object queries to classes and boxes."""
    call = calls["queries"][0]
    queries: Queries = call.output  # views of parameters: detached, so that a trace holds no graph
    yield Stage(number=6, name="queries: content", value=queries.content.detach(), seconds=call.seconds)
    yield Stage(number=6, name="queries: position", value=queries.position.detach())
    if queries.reference is not None:
        yield Stage(number=6, name="queries: reference", value=queries.reference)
    yield from of_layers(6, "decoder", calls)
    logits = torch.stack([layer.logits for layer in output.layers])
    boxes = torch.stack([layer.boxes for layer in output.layers])
    yield Stage(number=7, name="logits", value=logits, seconds=total(calls, "decoder.class_head"))
    yield Stage(number=7, name="boxes", value=boxes, seconds=total(calls, "decoder.box_head"))


def comparison_stages(comparison: Comparison, queries: int) -> Iterator[Stage]:
    """Yield stages 8 to 10, from costs to losses."""
    for layer, cost in enumerate(comparison.cost, 1):
        yield Stage(number=8, name=f"cost, layer {layer}", value=cost)
    yield Stage(number=8, name="query of each object", value=comparison.matched)
    yield Stage(number=9, name="object of each query", value=comparison.matched_objects(queries))
    losses = torch.tensor(list(comparison.losses.values()), device="cpu")
    yield Stage(number=10, name="losses", value=losses, seconds=comparison.seconds)


def of_maps(number: int, name: str, calls: Calls, part: str) -> Iterator[Stage]:
    """Yield the feature maps that a module returned; the first has the time of all."""
    (call,) = calls[part]
    for index, (each, feature) in enumerate(named(name, call.output)):
        yield Stage(number=number, name=each, value=feature, seconds=None if index else call.seconds)


def of_layers(number: int, part: str, calls: Calls) -> Iterator[Stage]:
    """Yield the output of each layer of the encoder or the decoder."""
    layer = 0
    while (name := f"{part}.layers.{layer}") in calls:
        (call,) = calls[name]
        layer += 1
        yield Stage(number=number, name=f"{part} layer {layer}", value=call.output, seconds=call.seconds)


def total(calls: Calls, part: str) -> float:
    """Return the time of all calls of modules whose names start with `part`."""
    return sum(call.seconds for name, recorded in calls.items() if name.startswith(part) for call in recorded)


def named(name: str, values: Iterable[T]) -> list[tuple[str, T]]:
    """Return values with their names, numbered from 1 if there are several."""
    values = list(values)
    return [(f"{name} {number}" if len(values) > 1 else name, each) for number, each in enumerate(values, 1)]
