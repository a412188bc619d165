"""Whether the graph of an exported model has the inputs and outputs that its card describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor

from querybox.errors import CheckpointError
from querybox.exporting.card import EXPORT_AGAIN, Card

CURE = f"it does not fit its card: {EXPORT_AGAIN}"


class Port(NamedTuple):
    """An input or an output."""

    type: str
    """Name of the type, such as ``"float32"``."""
    shape: tuple[int | None, ...]
    """Size of each axis; None for any size. Empty if unknown."""

    def __str__(self) -> str:
        """Return its description for messages, such as ``uint8 [any, 3, any, any]``."""
        return f"{self.type} [{', '.join('any' if size is None else str(size) for size in self.shape)}]"

    @classmethod
    def described(cls, text: str) -> Self:
        """Return the port with which a description of the card begins, such as ``uint8 [B, 3, H, W]: RGB images``."""
        kind, _, axes = text.partition("]")[0].partition(" [")
        return cls(kind, tuple(int(axis) if axis.isdecimal() else None for axis in axes.split(", ")))


def check_signature(
    where: object, card: Card, inputs: Mapping[str, Port], outputs: Mapping[str, Port]
) -> None:
    """Check what a graph declares, before it is run.

    Args:
        where: The file, named in errors.
        card: The card in it.
        inputs: The inputs that the graph declares, by name.
        outputs: Its outputs.

    Raises:
        CheckpointError: A name, a type, a shape, or the number of classes is not that of the card.
    """
    for kind, found, expected in (
        ("inputs", inputs, input_ports(card)),
        ("outputs", outputs, output_ports(card)),
    ):
        if found.keys() != expected.keys():
            raise CheckpointError(
                f"{where}: has the {kind} {', '.join(found)}; expected {', '.join(expected)}: {CURE}"
            )
        for name, port in found.items():
            # An input has to have the axes of the card; an output may say more than is required.
            if not is_similar(port, expected[name], fixed=kind == "outputs"):
                raise CheckpointError(f"{where}: '{name}' is {port}; expected {expected[name]}: {CURE}")
    declared = {name: port.shape for name, port in outputs.items() if port.shape}
    check_rows(where, card, declared["logits"][2] if "logits" in declared else None)
    queries = {declared[name][1] for name in ("logits", "boxes") if name in declared} - {None}
    if len(queries) > 1:
        raise CheckpointError(
            f"{where}: 'logits' and 'boxes' are of {queries} queries; expected the same number: {CURE}"
        )


def input_ports(card: Card) -> dict[str, Port]:
    """Return the inputs of a model with this card."""
    return {name: Port.described(text) for name, text in card.inputs.items()}


def output_ports(card: Card) -> dict[str, Port]:
    """Return the outputs of a model with this card."""
    return {name: Port.described(text) for name, text in card.outputs.items()}


def is_similar(port: Port, expected: Port, *, fixed: bool) -> bool:
    """Return whether a port has the expected type and axes; where `fixed`, an axis of any size may have one."""
    if port.type != expected.type or (port.shape and len(port.shape) != len(expected.shape)):
        return False
    return all(
        size == wanted or size is None or (fixed and wanted is None)
        for size, wanted in zip(port.shape, expected.shape, strict=False)
    )


def check_rows(where: object, card: Card, rows: int | None) -> None:
    """Raise CheckpointError unless a class head with this many rows, if known, has those of the card's classes."""
    needed = 1 + max(card.class_rows) + card.no_object
    if rows is not None and rows < needed:
        raise CheckpointError(
            f"{where}: its class head has {rows} rows; expected at least {needed} for {len(card.categories)} classes: "
            f"{CURE}"
        )


def check_outputs(where: object, card: Card, outputs: Mapping[str, Tensor], batch: int) -> None:
    """Check the outputs of a run, because a graph may declare sizes that it does not have.

    Raises:
        CheckpointError: A type or a shape is not that of the card.
    """
    for name, port in output_ports(card).items():
        tensor = outputs[name]
        if tensor.dtype != getattr(torch, port.type) or not (
            tensor.ndim == len(port.shape)
            and len(tensor) == batch
            and all(wanted in (None, size) for size, wanted in zip(tensor.shape, port.shape, strict=True))
        ):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise CheckpointError(
                f"{where}: '{name}' is {found}, for {batch} images; expected {port}: {CURE}"
            )
    if outputs["logits"].shape[1] != outputs["boxes"].shape[1]:
        raise CheckpointError(f"{where}: 'logits' and 'boxes' are of different numbers of queries: {CURE}")
    check_rows(where, card, outputs["logits"].shape[2])
    if not card.masks:
        return
    queries, masks = outputs["queries"], outputs["masks"]
    if queries.shape != masks.shape[:2] or not masks.numel():
        raise CheckpointError(
            f"{where}: 'masks' is {list(masks.shape)} and 'queries' is {list(queries.shape)}; expected a query of each "
            f"mask: {CURE}"
        )
    if not 0 <= queries.min() <= queries.max() < outputs["boxes"].shape[1]:
        raise CheckpointError(f"{where}: 'queries' has indices beyond those of 'boxes': {CURE}")
