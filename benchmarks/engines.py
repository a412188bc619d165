"""Our engines, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks.setup import Setup, detector
from querybox.engine import Engine

PLAIN = "querybox plain"
OPTIMISED = "querybox"
"""What `predict` and `evaluate` run by default."""
COMPILED = "querybox compiled"
TORCH_BF16 = "querybox bf16"
ONNX = "querybox, ONNX Runtime"
OPENVINO = "querybox, OpenVINO"
OPENVINO_BF16 = "querybox, OpenVINO bf16"
INT8 = "querybox, OpenVINO int8"
INT8_ONNX = "querybox, ONNX Runtime int8"


@cache
def build(setup: Setup, name: str) -> Engine:
    """Return the engine of this name."""
    makers: dict[str, Callable[[], Engine]] = {
        PLAIN: detector,
        OPTIMISED: optimised,
        COMPILED: partial(optimised, compiled=True),
        TORCH_BF16: partial(optimised, dtype=torch.bfloat16),
        ONNX: partial(exported, setup, "onnx", "float32"),
        OPENVINO: partial(exported, setup, "openvino", "float32"),
        OPENVINO_BF16: partial(exported, setup, "openvino", "bf16"),
        INT8: partial(exported, setup, "openvino", "int8"),
        INT8_ONNX: partial(exported, setup, "onnx", "int8"),
    }
    return makers[name]()


def optimised(*, compiled: bool = False, dtype: torch.dtype = torch.float32) -> Engine:
    """Return the optimised copy."""
    from querybox.optimize import optimize

    return optimize(detector(), dtype=dtype, compile=compiled)


def exported(setup: Setup, to: str, precision: str) -> Engine:
    """Return an exported model, from the file of an earlier run where the weights and our code are still the same."""
    from querybox.export import export, load_engine

    path = setup.folder / f"{to}-{precision}{'.onnx' if to == 'onnx' else '.xml'}"
    if not path.exists() or path.stat().st_mtime < newest_source():
        export(detector(), path, to=to, precision=precision)
    return load_engine(path)


def newest_source() -> float:
    """Return when the code was last changed, as files say time."""
    root = Path(__file__).parent.parent
    sources = [*root.glob("src/**/*.py"), root / "benchmarks" / "setup.py"]
    return max(source.stat().st_mtime for source in sources)
