"""Writing ExecuTorch programs, and running them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from querybox.errors import CheckpointError, ExportError, requires_extra
from querybox.exporting.card import EXPORT_AGAIN, INPUTS, KEY, Card
from querybox.exporting.engine import ExportedModel, Outputs, one_at_a_time
from querybox.exporting.signature import Port, check_signature
from querybox.memory import first_line

METHOD = "forward"
"""The method that runs the model. Another, `KEY`, returns the card."""
TYPES = {0: "uint8", 4: "int64", 6: "float32"}
"""Names of types, by PyTorch's numbers for them (`c10::ScalarType`)."""


def write(program: ExportedProgram, path: Path, card: Card) -> None:
    """Write a traced detector of a fixed size as a ``.pte`` file, for XNNPACK and ExecuTorch's own kernels.

    Raises:
        ExportError: ExecuTorch cannot convert the model.
        MissingExtraError: ExecuTorch is not installed.
    """
    with requires_extra("executorch", "writing an ExecuTorch file"), without_warnings():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    try:
        with without_warnings():
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: card.to_json()}
            )
            path.write_bytes(lowered.to_executorch().buffer)
    except RuntimeError as error:
        raise ExportError(
            f"ExecuTorch cannot convert this model ({first_line(error)}); nothing was written: try another format"
        ) from error


@contextmanager
def without_warnings() -> Iterator[None]:
    """Hide ExecuTorch's warnings that its Python interface is experimental, and those of what it imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(path: Path, *, trusted: bool) -> ExportedModel:
    """Load a file written by `write`.

    Raises:
        CheckpointError: The file is corrupt or not exported by querybox, or `trusted` is False.
        MissingExtraError: ExecuTorch is not installed.
    """
    if not trusted:
        raise CheckpointError(
            f"{path}: ExecuTorch does not check all of a .pte file, so a malicious one may execute code; if you trust "
            "its source, pass --trust, or querybox.load(path, trusted=True)"
        )
    with requires_extra("executorch", "running an ExecuTorch file"), without_warnings():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    if portable_lib._threadpool_get_thread_count() != torch.get_num_threads():
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())  # there is no other interface for it
    try:
        program = Runtime.get().load_program(path)
        text = program.load_method(KEY).execute([])[0] if KEY in program.method_names else None
        method = program.load_method(METHOD)
    except (RuntimeError, LookupError) as error:
        raise CheckpointError(
            f"{path}: corrupt, or not an ExecuTorch program ({first_line(error)}); {EXPORT_AGAIN}"
        ) from error
    card = Card.from_json(text, path)
    meta = method.metadata
    inputs = ports([*INPUTS], meta.num_inputs(), meta.input_tensor_meta)
    outputs = ports([*card.outputs], meta.num_outputs(), meta.output_tensor_meta)
    check_signature(path, card, inputs, outputs)

    def run(pixels: Tensor, sizes: Tensor) -> Outputs:
        try:
            values = method.execute([pixels.contiguous(), sizes.contiguous()])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path}: ExecuTorch cannot run this model ({first_line(error)}); export it to another format"
            ) from error
        return dict(zip(card.outputs, values, strict=True))

    return ExportedModel(card, one_at_a_time(run))


def ports(names: Sequence[str], count: int, describe: Callable[[int], Any]) -> dict[str, Port]:
    """Return the inputs or the outputs of a method, which have an order and no names."""
    found = {}
    for index in range(count):
        tensor = describe(index)
        name = names[index] if index < len(names) else f"the {index + 1}th"
        found[name] = Port(TYPES.get(tensor.dtype(), f"type {tensor.dtype()}"), tuple(tensor.sizes()))
    return found
