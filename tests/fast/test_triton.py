"""The Triton kernels for sampling: by Triton's interpreter, compiled for GPUs, and on a GPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import run_program
from tiny_models import TINY
from torch import nn

from querybox.detector import Detector
from querybox.fast import sampling
from querybox.fast.sampling import TableSample, TritonSample, runs_triton
from querybox.fast.training import for_training
from querybox.inference.engine import default_device
from querybox.modules.deformable_attention import DeformableAttention, GridSample

pytest.importorskip("triton")
CHECKS = Path(__file__).with_name("triton_checks.py")
CPU = torch.device("cpu")
AFRESH = """
import runpy
import sys

for name in [each for each in sys.modules if f"{each}.".startswith("triton.") and "._C" not in each]:
    del sys.modules[name]
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a program in which Triton's own kernels, which are imported already, are defined once more."""


def test_the_interpreter_finds_the_values_and_gradients_of_the_definition(tmp_path: Path) -> None:
    interpreted = {"TRITON_INTERPRET": "1"}  # read when kernels are defined
    assert run_program(AFRESH, tmp_path, str(CHECKS), environment=interpreted) == "4 checks passed\n"


@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel"])
def test_kernels_compile_for_a_gpu(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from querybox.fast import triton_sampling

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function: Any = getattr(triton_sampling, kernel)
    constants = {
        "POINTS": (3, 6, 3),
        "LEVELS": 3,
        "TOTAL": 12,
        "HEADS": 8,
        "WIDTH": 32,
        "ROWS": 32,
        "CHANNELS": 32,
    }
    types = {"num_rows": "i32", "num_queries": "i32", "num_cells": "i32", "value": "*bf16"}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32") for name in function.arg_names
    }
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=signature, constexprs=places)
    compiled = compile_kernel(source, target=GPUTarget("cuda", 90, 32))
    assert ("atom.global" in compiled.asm["ptx"]) == (kernel == "backward_kernel")


@pytest.mark.device
@pytest.mark.skipif(default_device().type != "cuda", reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # `opcheck` reads that of non-leaves
@pytest.mark.parametrize("check", ["check_values", "check_gradients", "check_nan", "check_registration"])
def test_a_gpu_finds_the_values_and_gradients_of_the_definition(check: str) -> None:
    assert runs_triton(default_device())
    import_module("tests.fast.triton_checks").__dict__[check]("cuda")


def samplers(model: nn.Module) -> set[type[nn.Module]]:
    return {type(module.sampling) for module in model.modules() if isinstance(module, DeformableAttention)}


def test_the_kernels_are_used_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector.from_recipe("deformable_detr_r50", num_classes=2, **TINY)
    assert not runs_triton(CPU)
    assert samplers(detector.optimize().model) == {TableSample}
    for module in ("inference", "training"):
        monkeypatch.setattr(f"querybox.fast.{module}.runs_triton", lambda device: True)
    assert samplers(detector.optimize().model) == {TritonSample}
    meta = detector.to("meta")  # like a GPU, not a CPU
    assert samplers(for_training(meta)) == {TritonSample}
    assert samplers(meta) == {GridSample}


def test_what_is_missing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU that is asked for, or Triton."""
    assert not runs_triton(torch.device("cuda", 99))
    runs_triton.cache_clear()
    monkeypatch.setattr(sampling, "find_spec", lambda name: None)
    assert not runs_triton(torch.device("cuda", 0))
    runs_triton.cache_clear()
