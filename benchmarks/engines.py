"""querybox's engines, all with the same weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.setup import EXAMPLE, Setup, detector
from querybox.checkpoints.find import EXPORTED, Format
from querybox.data import DetectionData, read_dataset
from querybox.exporting import export, load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.inference.engine import Engine
from querybox.inference.optimized_model import OptimizedModel

PLAIN = "querybox plain"
OPTIMISED = "querybox"
"""What `predict` and `evaluate` run by default."""
COMPILED = "querybox compiled"
TORCH_BF16 = "querybox bf16"
ONNX = "querybox, ONNX Runtime"
OPENVINO = "querybox, OpenVINO"
OPENVINO_BF16 = "querybox, OpenVINO bf16"
INT8 = "querybox, OpenVINO int8"


FILES: dict[str, tuple[Format, ExportedPrecision]] = {
    ONNX: ("onnx", "float32"),
    OPENVINO: ("openvino", "float32"),
    OPENVINO_BF16: ("openvino", "bf16"),
    INT8: ("openvino", "int8"),
}
"""Format and precision of the exported engines."""
CALIBRATION = 8
"""Number of int8 calibration images; it does not affect the speed."""


@cache
def build(setup: Setup, name: str) -> Engine:
    """Return the engine of this name."""
    if name in FILES:
        return load_exported(exported(setup, name))
    if name == PLAIN:
        return detector()
    return OptimizedModel(
        detector(), precision="bf16" if name == TORCH_BF16 else "float32", compile=name == COMPILED
    )


def exported(setup: Setup, name: str) -> Path:
    """Return the file of an exported model, reused from an earlier run if weights and code are unchanged."""
    to, precision = FILES[name]
    path = setup.folder / f"{to}-{precision}{EXPORTED[to]}"
    if not path.exists() or path.stat().st_mtime < newest_source():
        images = calibration() if precision == "int8" else None
        export(detector(), path, to=to, precision=precision, calibration=images)
    return path


def calibration() -> DetectionData:
    """Return images of the example, labelled with the detector's classes."""
    data = read_dataset(EXAMPLE / "annotations" / "val.json")
    return replace(data, categories=detector().categories, images=data.images[:CALIBRATION])


def newest_source() -> float:
    """Return the latest modification time of the code."""
    root = Path(__file__).parent.parent
    sources = [*root.glob("src/**/*.py"), root / "benchmarks" / "setup.py"]
    return max(source.stat().st_mtime for source in sources)
