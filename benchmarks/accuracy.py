"""The effect of int8 on average precision, measured on the shipped blood-cell model and on the example with masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.engines import INT8, OPTIMISED
from benchmarks.goals import within
from benchmarks.measure import Absent, Row, Side, Work
from benchmarks.setup import EXAMPLE, Setup
from querybox.data import DetectionData, read_dataset
from querybox.detector import Detector
from querybox.evaluation.evaluate import evaluate
from querybox.evaluation.result import Evaluation
from querybox.exporting import export, load_exported

NUCLEI = EXAMPLE.parents[1] / "runs" / "nuclei"
"""The folder of the run of `examples/blood_cells/nuclei`."""
TRAIN = (
    "querybox train examples/blood_cells/nuclei/run.yaml --weights examples/blood_cells/weights.safetensors"
)


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for boxes and one for masks. Calibrate on the validation split and evaluate on the test split."""
    yield row(
        setup,
        "int8-accuracy",
        "Average precision of the blood-cell model on its test images",
        EXAMPLE / "detr.safetensors",
        EXAMPLE / "annotations",
        lambda evaluation: evaluation.metrics["AP"],
    )
    yield row(
        setup,
        "int8-mask-accuracy",
        "Average precision of masks of the nuclei example on its test images",
        NUCLEI,
        EXAMPLE / "nuclei",
        mask_precision,
    )


def mask_precision(evaluation: Evaluation) -> float:
    """Return the AP of masks."""
    assert evaluation.masks is not None
    return evaluation.masks.metrics["AP"]


def row(
    setup: Setup, name: str, title: str, model: Path, data: Path, value: Callable[[Evaluation], float]
) -> Row:
    """Return the row of a model, whose data are in one file for each split."""
    return Row(
        name=name,
        title=title,
        sides=[
            Side(name=OPTIMISED, build=partial(optimised, setup, model, data, value)),
            Side(name=INT8, build=partial(quantised, setup, model, data, value), tolerance=0.1),
        ],
        difference=lambda a, b: abs(a - b),
        value=float,
        goals=[within(INT8, OPTIMISED, 0.005)],
        unit="AP",
        rounds=(0, 0),
    )


def load(model: Path) -> Detector:
    """Load a model.

    Raises:
        Absent: It is the example with masks, and has not been trained.
    """
    if not model.exists():
        raise Absent(f"there is no {model}; train it: {TRAIN}")
    return Detector.load(model)


def optimised(setup: Setup, model: Path, data: Path, value: Callable[[Evaluation], float]) -> Work:
    """Return a function that evaluates the model as `querybox evaluate` does."""
    detector = load(model)
    return lambda: value(evaluate(detector, split(setup, data / "test.json")))


def quantised(setup: Setup, model: Path, data: Path, value: Callable[[Evaluation], float]) -> Work:
    """Return a function that evaluates the model exported to int8."""
    path = setup.folder / f"{data.name}-int8.xml"
    calibration = split(setup, data / "val.json")
    export(load(model), path, to="openvino", precision="int8", calibration=calibration)
    engine = load_exported(path)
    return lambda: value(evaluate(engine, split(setup, data / "test.json")))


def split(setup: Setup, path: Path) -> DetectionData:
    """Return a split of an example."""
    data = read_dataset(path)
    return replace(data, images=data.images[: setup.count(len(data.images))])
