"""The effect of int8 on average precision, measured on the shipped blood-cell model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.engines import INT8, OPTIMISED
from benchmarks.goals import within
from benchmarks.measure import Row, Side, Work
from benchmarks.setup import EXAMPLE, Setup
from querybox.data import DetectionData, read_dataset
from querybox.detector import Detector
from querybox.evaluation.evaluate import evaluate
from querybox.exporting import export, load_exported


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the row. Calibrate on the validation split and evaluate on the test split."""
    yield Row(
        name="int8-accuracy",
        title="Average precision of the blood-cell model on its test images",
        sides=[
            Side(name=OPTIMISED, build=lambda: optimised(setup)),
            Side(name=INT8, build=lambda: quantised(setup), tolerance=0.1),
        ],
        difference=lambda a, b: abs(a - b),
        value=float,
        goals=[within(INT8, OPTIMISED, 0.005)],
        unit="AP",
        rounds=(0, 0),
    )


def optimised(setup: Setup) -> Work:
    """Return a function that evaluates the model as `querybox evaluate` does."""
    detector = Detector.load(EXAMPLE / "detr.safetensors")
    return lambda: evaluate(detector, split(setup, "test")).metrics["AP"]


def quantised(setup: Setup) -> Work:
    """Return a function that evaluates the model exported to int8."""
    detector = Detector.load(EXAMPLE / "detr.safetensors")
    path = setup.folder / "blood-cells-int8.xml"
    export(detector, path, to="openvino", precision="int8", calibration=split(setup, "val"))
    engine = load_exported(path)
    return lambda: evaluate(engine, split(setup, "test")).metrics["AP"]


def split(setup: Setup, name: str) -> DetectionData:
    """Return a split of the example."""
    data = read_dataset(EXAMPLE / "annotations" / f"{name}.json")
    return replace(data, images=data.images[: setup.count(len(data.images))])
