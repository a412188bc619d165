"""Inference of the real-time detectors, one image of 640x640, with every engine, and the models of others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import yolo
from benchmarks.engines import INT8, ONNX, OPENVINO, OPTIMISED, PLAIN, calibration
from benchmarks.goals import Goal, faster
from benchmarks.measure import Row, Side, Work
from benchmarks.peers import TRANSFORMERS, transformers_from_files
from benchmarks.setup import NUM_CLASSES, Setup, pixels
from querybox.checkpoints.find import EXPORTED, Format
from querybox.detector import Detector
from querybox.exporting import export, load_exported
from querybox.exporting.card import ExportedPrecision
from querybox.inference.engine import Engine
from querybox.inference.optimized_model import OptimizedModel
from querybox.structures import ImageBatch

FIXED = "querybox, OpenVINO, fixed size"
FIXED_INT8 = "querybox, OpenVINO int8, fixed size"
"""Exported with `querybox export --size 640x640`."""
THEIR_GRAPH = f"{TRANSFORMERS}, OpenVINO"
THEIR_INT8 = f"{TRANSFORMERS}, OpenVINO int8"
OWN = (PLAIN, OPTIMISED, ONNX, OPENVINO, FIXED, INT8, FIXED_INT8)
EXACT, ROUGHER = 2e-2, 2.0
"""Tolerances of the scores in float32 and in int8, as logits. With random weights, rounding decides about the last of
the 300 proposals that become queries; another one there changes the scores of all by some thousandths."""
SIDE, QUICK_SIDE = 640, 320


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTime:
    """A real-time detector of both libraries."""

    model_class: str
    """Class of the model in transformers."""
    torch_goal: float
    """Required speed of the torch engine relative to transformers."""
    yolo: str | None = None
    """Name of the YOLO26 of similar AP."""
    yolo_goals: tuple[float, float] = (1.0, 1.0)
    """Required speed in OpenVINO relative to that YOLO26, in float32 and in int8."""


MODELS = {
    "rtdetr_r18": RealTime(model_class="RTDetrForObjectDetection", torch_goal=2.0),
    "dfine_n": RealTime(
        model_class="DFineForObjectDetection", torch_goal=2.5, yolo="yolo26n", yolo_goals=(1 / 1.15, 1 / 1.25)
    ),
    "dfine_s": RealTime(
        model_class="DFineForObjectDetection", torch_goal=2.0, yolo="yolo26s", yolo_goals=(1.0, 1 / 1.2)
    ),
}
"""The models that are measured, by recipe."""


def rows(setup: Setup) -> Iterator[Row]:
    """Yield a row for each model."""
    for recipe, facts in MODELS.items():
        theirs = [
            Side(name=TRANSFORMERS, build=partial(transformers, setup, recipe), tolerance=EXACT),
            Side(name=THEIR_GRAPH, build=partial(their_graph, setup, recipe), tolerance=EXACT),
            Side(name=THEIR_INT8, build=partial(their_graph, setup, recipe, int8=True), tolerance=ROUGHER),
        ]
        if facts.yolo is not None:
            theirs += yolo.sides(setup, facts.yolo, image_size(setup)[0])
        yield Row(
            name=f"real-time-{recipe}",
            title=f"{detector_title(recipe)}, one image of {SIDE}x{SIDE}",
            sides=[
                *(own_side(setup, recipe, name) for name in OWN),
                *theirs,
            ],
            difference=furthest,
            goals=goals(facts),
            seconds=setup.seconds(40),
        )


def goals(facts: RealTime) -> list[Goal]:
    """Return the goals of a row."""
    found = [
        faster([OPTIMISED], TRANSFORMERS, facts.torch_goal),
        faster([OPENVINO, FIXED], THEIR_GRAPH, 1.25),
        faster([INT8, FIXED_INT8], THEIR_INT8, 1.5),
    ]
    if facts.yolo is not None:
        float32, int8 = facts.yolo_goals
        found.append(faster([OPENVINO, FIXED], f"{facts.yolo}, OpenVINO", float32))
        found.append(faster([INT8, FIXED_INT8], f"{facts.yolo}, OpenVINO int8", int8))
    return found


def detector_title(recipe: str) -> str:
    """Return the name of the model for people."""
    return recipe.replace("rtdetr", "RT-DETR").replace("dfine", "D-FINE").replace("_", " ")


def image_size(setup: Setup) -> tuple[int, int]:
    """Return height and width of the image, multiples of 32 with 300 cells or more, as transformers expects."""
    side = QUICK_SIDE if setup.quick else SIDE
    return side, side


def furthest(a: Tensor, b: Tensor) -> float:
    """Return the largest difference between scores of equal rank, as logits."""
    return float((a - b).abs().max())


def ranked(logits: Tensor) -> Tensor:
    """Return the 50 highest logits; the order of queries depends on rounding where scores are equal."""
    return logits.float().flatten().topk(50).values


@cache
def detector(recipe: str) -> Detector:
    """Return a detector with random weights whose scores depend on the image and the query, as in a trained model.

    Batch norms get the statistics of real images, and the proposals' scores larger weights: otherwise they would be
    about the same, and rounding would decide which proposals become queries.
    """
    torch.manual_seed(0)
    model = Detector.from_recipe(recipe, num_classes=NUM_CLASSES).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proposals.class_head" in name and parameter.ndim == 2:
                parameter.normal_(0, 0.05)
        model(ImageBatch.from_pixels(*pixels(4, (320, 320)), model.preprocessing))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def own_side(setup: Setup, recipe: str, name: str) -> Side:
    """Return the side of one of querybox's engines."""
    return Side(
        name=name,
        build=partial(ours, setup, recipe, name),
        tolerance=ROUGHER if name in (INT8, FIXED_INT8) else EXACT,
    )


def ours(setup: Setup, recipe: str, name: str) -> Work:
    """Return a forward pass of an engine."""
    engine = build(setup, recipe, name)
    batch = ImageBatch.from_pixels(*pixels(1, image_size(setup)), engine.preprocessing)

    def work() -> Tensor:
        with torch.inference_mode():
            return ranked(engine(batch).layers[-1].logits)

    return work


def build(setup: Setup, recipe: str, name: str) -> Engine:
    """Return the engine of this name."""
    if name == PLAIN:
        return detector(recipe)
    if name == OPTIMISED:
        return OptimizedModel(detector(recipe))
    to: Format = "onnx" if name == ONNX else "openvino"
    size = image_size(setup) if name in (FIXED, FIXED_INT8) else None
    precision: ExportedPrecision = "int8" if name in (INT8, FIXED_INT8) else "float32"
    path = setup.folder / f"{recipe}-{precision}{'' if size is None else '-fixed'}{EXPORTED[to]}"
    images = calibration() if precision == "int8" else None
    export(detector(recipe), path, to=to, precision=precision, size=size, calibration=images)
    return load_exported(path)


def transformers(setup: Setup, recipe: str) -> Work:
    """Return the forward pass of transformers' model."""
    model = peer(recipe, setup.folder / f"{recipe}-transformers")
    inputs = their_inputs(setup, recipe)

    def work() -> Tensor:
        with torch.inference_mode():
            return ranked(model(pixel_values=inputs).logits)

    return work


def their_graph(setup: Setup, recipe: str, *, int8: bool = False) -> Work:
    """Return the forward pass of transformers' model, converted by OpenVINO for this size, and quantised by NNCF."""
    import openvino

    inputs = their_inputs(setup, recipe)
    wrapped = LogitsAndBoxes(peer(recipe, setup.folder / f"{recipe}-transformers"))
    graph = openvino.convert_model(wrapped, example_input=inputs, input=[list(inputs.shape)])
    if int8:
        import nncf

        images = [inputs.numpy()]
        graph = nncf.quantize(graph, nncf.Dataset(images), preset=nncf.QuantizationPreset.PERFORMANCE)
    compiled = openvino.compile_model(
        graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    )

    def work() -> Tensor:
        return ranked(torch.from_numpy(compiled(inputs.numpy())[0]))

    return work


class LogitsAndBoxes(nn.Module):
    """A model of transformers that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and boxes."""
        answer: Any = self.model(pixel_values=pixel_values)
        return answer.logits, answer.pred_boxes


def their_inputs(setup: Setup, recipe: str) -> Tensor:
    """Return the image as transformers' model takes it."""
    return ImageBatch.from_pixels(*pixels(1, image_size(setup)), detector(recipe).preprocessing).images


def peer(recipe: str, folder: Path) -> Any:
    """Return transformers' model with our weights, read from its own files."""
    return transformers_from_files(detector(recipe), MODELS[recipe].model_class, folder)
