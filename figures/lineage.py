"""Figures of the lineage pages, from small models that were trained on the blood cells.

``python -m figures.lineage RTDETR DFINE`` takes the weights of runs with ``recipe=rtdetr_small`` and
``recipe=dfine_small``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from figures.sheet import COLOURS, DASHES, frame, save, sheet, show
from figures.specimen import EXAMPLE, IMAGE
from querybox import Detector, ImageBatch, read_dataset
from querybox.boxes import iou_and_giou, to_xyxy
from querybox.data.records import DetectionData, ImageRecord
from querybox.data.training_images import read_pixels
from querybox.data.transforms import resize
from querybox.edges import Edges
from querybox.inspect import AttentionPoints
from querybox.inspect.annotated import trace_record
from querybox.inspect.tracing import edge_deviations
from querybox.structures import DetectorOutput, Predictions

PAGES = Path(__file__).parent.parent / "docs" / "lineage"
SHOWN = 0.5
"""Score from which detections are shown."""
SIDES = ("left", "top", "right", "bottom")


class Answer(NamedTuple):
    """The output of a detector for one image."""

    record: ImageRecord
    pixels: UInt8[Tensor, "3 h w"]
    output: DetectorOutput


def answers(detector: Detector, data: DetectionData) -> Iterator[Answer]:
    """Yield the outputs for all images."""
    sizes = detector.preprocessing
    for record in data.images:
        pixels = resize(read_pixels(record), sizes.short_side, sizes.long_side, sizes.resizing)
        with torch.no_grad():
            output = detector(ImageBatch.from_images([pixels], sizes))
        yield Answer(record, pixels, output)


def selection(detector: Detector) -> Figure:
    """RT-DETR: scores over IoUs, of the proposals and after the decoder, in all images of the test split."""
    figure, grid = sheet(3.2, ncols=2, sharey=True)
    proposals, last = [], []
    for record, _, output in answers(detector, read_dataset(EXAMPLE, "test")):
        assert output.proposals is not None
        proposals.append(scores_and_ious(output.proposals, record))
        last.append(scores_and_ious(output.layers[-1], record))
    for axes, title, found in zip(grid, ("proposals", "detections"), (proposals, last), strict=True):
        score, iou = torch.cat(found).numpy().T
        axes.plot(iou, score, ".", color=COLOURS[0], markersize=2, alpha=0.3)
        title = f"{title}: r = {np.corrcoef(iou, score)[0, 1]:.2f}"
        axes.set(xlabel="IoU with the nearest cell", title=title, xlim=(0, 1), ylim=(0, 1))
    grid[0].set_ylabel("highest class score")
    return figure


def scores_and_ious(predictions: Predictions, record: ImageRecord) -> Float[Tensor, "Q 2"]:
    """Return the highest score of each query, and its highest IoU with an object."""
    size = torch.tensor([record.width, record.height] * 2)
    objects = torch.from_numpy(record.boxes_xyxy).float() / size
    ious, _ = iou_and_giou(to_xyxy(predictions.boxes[0])[:, None], objects)
    return torch.stack([predictions.logits[0].sigmoid().amax(1), ious.amax(1)], 1)


def sampling(detector: Detector) -> Figure:
    """RT-DETRv2: where a query samples, bilinearly and in the nearest cells."""
    figure, grid = sheet(2.3, ncols=3)
    data = read_dataset(EXAMPLE, "test")
    record = next(record for record in data.images if record.path.name == IMAGE)
    trace = trace_record(detector, record, data)
    query = trace.ranking[0]
    attention = trace.decoder_cross_attention[-1]
    assert isinstance(attention, AttentionPoints)
    points, weights = attention.points([query])
    first = 0
    for axes, (rows, columns), count in zip(grid, trace.grids, attention.module.points, strict=True):
        show(axes, trace.pixels, f"{rows} x {columns} cells", grey=True)
        frame(axes, trace.boxes[-1, query].tolist(), COLOURS[int(trace.scores[-1, query].argmax())])
        level = slice(first, first + count)
        first += count
        for (x, y), weight in zip(
            points[:, 0, level].reshape(-1, 2), weights[:, 0, level].flatten(), strict=True
        ):
            column, row = int(x * columns), int(y * rows)
            cell = Rectangle(
                (column / columns, row / rows), 1 / columns, 1 / rows, color=COLOURS[1], alpha=0.35, lw=0
            )
            axes.add_patch(cell)
            axes.plot([x], [y], "o", color="black", markersize=1 + 12 * float(weight))
        x, y, w, h = trace.boxes[-1, query].tolist()
        axes.set(xlim=(x - 0.8 * w, x + 0.8 * w), ylim=(y + 0.8 * h, y - 0.8 * h))
    return figure


def edges(detector: Detector) -> Figure:
    """D-FINE: detections with the deviation of every edge, and the distributions of one box's edges, layer by layer."""
    figure, grid = sheet(5.2, nrows=3, ncols=2, height_ratios=(2.4, 1, 1))
    for axes in grid[0]:
        axes.remove()
    picture = figure.add_subplot(grid[0, 0].get_gridspec()[0, :])
    data = read_dataset(EXAMPLE, "test")
    _, pixels, output = next(each for each in answers(detector, data) if each.record.path.name == IMAGE)
    last = output.layers[-1]
    scores, labels = last.logits[0].sigmoid().max(1)
    shown = (scores > SHOWN).nonzero().flatten().tolist()
    of_layers = edge_deviations([last.edges])
    assert of_layers is not None
    deviations = of_layers[0]
    query = max(shown, key=lambda each: float(deviations[each].max() / deviations[each].min()))
    show(picture, pixels, grey=True)
    for each in shown:
        label = int(labels[each])
        box = last.boxes[0, each]
        blur(picture, box, deviations[each], COLOURS[label])
        frame(
            picture, box.tolist(), COLOURS[label], dashes=DASHES[label], width=2.4 if each == query else 1.0
        )
    for side, axes in enumerate(grid[1:].flat):
        for layer, dashes in zip(output.layers, reversed(DASHES), strict=True):
            distances, probabilities = distribution(layer.edges, query, side, pixels)
            axes.plot(distances, probabilities, linestyle=dashes, color=COLOURS[0], marker=".", markersize=3)
        axes.set(title=SIDES[side], xlim=(-25, 25), ylim=(0, None))
    grid[1, 0].set_ylabel("probability")
    grid[2, 0].set_ylabel("probability")
    for axes in grid[2]:
        axes.set_xlabel("pixels outwards")
    return figure


def distribution(
    found: Edges | None, query: int, side: int, pixels: UInt8[Tensor, "3 h w"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Return the distances of an edge from that of the start box in pixels, and their probabilities."""
    assert found is not None
    length = float(found.start[0, query, 2 + side % 2]) * pixels.shape[2 - side % 2]
    return found.distances * length, found.probabilities()[0, query, side]


def blur(axes: Axes, box: Float[Tensor, " 4"], deviations: Float[Tensor, " 4"], colour: str) -> None:
    """Shade one standard deviation to both sides of every edge."""
    corners = to_xyxy(box)
    left, top, right, bottom = corners.tolist()
    for side, (edge, spread) in enumerate(zip(corners.tolist(), deviations.tolist(), strict=True)):
        if side % 2:
            band = Rectangle((left, edge - spread), right - left, 2 * spread)
        else:
            band = Rectangle((edge - spread, top), 2 * spread, bottom - top)
        band.set(color=colour, alpha=0.3, linewidth=0)
        axes.add_patch(band)


def main() -> None:
    """Write the figures."""
    rtdetr, dfine = (Detector.load(path).eval() for path in sys.argv[1:])
    (PAGES / "images").mkdir(exist_ok=True)
    for name, figure in (
        ("rtdetr", selection(rtdetr)),
        ("rtdetrv2", sampling(rtdetr)),
        ("dfine", edges(dfine)),
    ):
        save(figure, PAGES / "images" / f"{name}.png", "examples/blood_cells")


if __name__ == "__main__":
    main()
