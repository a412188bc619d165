"""A lack of memory is recognised, whoever reports it."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch

from querybox.errors import OutOfMemoryError
from querybox.memory import first_line, is_out_of_memory
from querybox.training.processes import translate_process_errors


def allocate(where: str) -> object:
    """Ask for more memory than any machine has."""
    if where == "torch":
        return torch.empty(2**56, dtype=torch.uint8)
    return np.empty(2**56, dtype=np.uint8) if where == "numpy" else bytes(2**60)


@pytest.mark.parametrize("where", ["torch", "numpy", "python"])
def test_lack_of_memory_in_training_is_an_error_with_a_cure(where: str) -> None:
    with (
        pytest.raises(
            OutOfMemoryError, match=r"^there is not enough memory \(.+\); set a larger 'train\.accumulate'"
        ),
        translate_process_errors(),
    ):
        allocate(where)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.87 GB)"),
        RuntimeError("bad allocation"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        MemoryError(),
    ],
)
def test_errors_of_libraries(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert "\n" not in first_line(error) != ""


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(errno.ENOENT, "no such file")],
)
def test_other_errors_are_others(error: Exception) -> None:
    assert not is_out_of_memory(error)
