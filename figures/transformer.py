"""Stages 5 to 7 and 12: attention of encoder and queries, and the predictions of the queries."""

from __future__ import annotations

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from figures.image import largest
from figures.sheet import COLOURS, DASHES, HATCHES, INK, bare, frame, mark, sheet, show, spotlight
from figures.specimen import DINO_WEIGHTS, Specimen
from querybox import Detector, draw
from querybox.inspect import AttentionMaps, AttentionPoints

LINES = (DASHES[2], DASHES[1], DASHES[0])
BARS = (HATCHES[2], HATCHES[1], HATCHES[0])
"""Line styles and hatches of the layers, from the first one, dotted, to the last, solid."""


def encoder(made: Specimen) -> Figure:
    """Stage 5: the attention of four cells in the encoder's last layer."""
    figure, grid = sheet(4.7, nrows=2, ncols=2)
    rows, columns = made.trace.grids[0]
    for axes, (name, x, y) in zip(grid.flat, points(made), strict=True):
        row, column = int(y * rows), int(x * columns)
        weights = attention_map(made, made.trace.encoder_attention[-1], row * columns + column)
        spotlight(axes, made.trace.pixels, weights, name)
        mark(axes, (column + 0.5) / columns, (row + 0.5) / rows)
    return figure


def attention_map(made: Specimen, layer: AttentionMaps | AttentionPoints, query: int) -> Float[Tensor, "h w"]:
    """Return the attention weights of a query in a layer, averaged over the heads."""
    assert isinstance(layer, AttentionMaps)
    return layer.weights([query]).mean((0, 1)).view(made.trace.grids[0])


def points(made: Specimen) -> list[tuple[str, float, float]]:
    """Return four points (x, y) in 0-1: in the white cell, in two red ones, and the one farthest from all cells."""
    boxes = made.comparison.target.boxes
    white = largest(made)
    red = [index for index in range(len(boxes)) if index != white][:2]
    rows, columns = made.trace.grids[0]
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    centres = torch.stack([x / columns, y / rows], dim=-1).view(-1, 2)
    gaps = ((centres[:, None] - boxes[:, :2]).abs() - boxes[:, 2:] / 2).amax(2).amin(1)  # 0: at an edge
    named = [("in the white cell", *boxes[white, :2].tolist())]
    named += [
        (f"in a red cell ({place})", *boxes[index, :2].tolist())
        for place, index in zip("ab", red, strict=True)
    ]
    return [*named, ("in the background", *centres[gaps.argmax()].tolist())]


def chosen_queries(made: Specimen) -> list[int]:
    """Return the query matched to the white cell, and those of the two red cells with the lowest cost."""
    matched = made.comparison.matched[-1]
    white = largest(made)
    cost = made.comparison.cost[-1].gather(1, matched[:, None])[:, 0]
    best = [index for index in cost.argsort().tolist() if index != white][:2]
    return matched[[white, *best]].tolist()


def decoder(made: Specimen) -> Figure:
    """Stage 6: the attention of three queries in each layer, and the box that they predict after it."""
    trace = made.trace
    layers = range(len(trace.boxes))
    figure, grid = sheet(5.0, nrows=3, ncols=len(layers))
    for row, query in zip(grid, chosen_queries(made), strict=True):
        for layer in layers:
            spotlight(
                row[layer], trace.pixels, attention_map(made, trace.decoder_cross_attention[layer], query)
            )
            frame(row[layer], trace.boxes[layer, query].tolist(), COLOURS[0], rim="black", width=1.8)
        row[0].set_ylabel(f"query {query}")
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"layer {layer + 1}")
    return figure


def heads(made: Specimen) -> Figure:
    """Stage 7: how the boxes of three queries move from layer to layer, and their classes."""
    trace = made.trace
    queries = chosen_queries(made)
    figure, grid = sheet(7.2, nrows=2, ncols=1, height_ratios=[1.9, 1])
    show(grid[0], trace.pixels)
    for query, colour in zip(queries, COLOURS[:2] + COLOURS[4:5], strict=True):
        for layer, dashes in enumerate(LINES):
            last = layer == len(LINES) - 1
            box = trace.boxes[layer, query].tolist()
            frame(grid[0], box, colour, dashes=dashes, width=2, label=str(query) if last else "")
    bare(grid[1])
    looks = [
        Patch(facecolor=COLOURS[5], edgecolor=INK, linestyle=dashes, hatch=hatch, label=f"layer {layer}")
        for layer, (dashes, hatch) in enumerate(zip(LINES, BARS, strict=True), 1)
    ]
    figure.legend(handles=looks, loc="outside lower center", ncols=3)
    assert trace.no_object_scores is not None
    names = [*(category.name for category in trace.categories), "none"]
    for place, query in enumerate(queries):
        inset = grid[1].inset_axes((0.06 + 0.33 * place, 0.2, 0.27, 0.64))
        for layer in range(len(trace.boxes)):
            values = [*trace.scores[layer, query].tolist(), float(trace.no_object_scores[layer, query])]
            at = [label + 0.27 * (layer - 1) for label in range(len(names))]
            inset.bar(at, values, 0.27, color=COLOURS[5], edgecolor=INK, hatch=BARS[layer], linewidth=0.7)
        inset.set_xticks(range(len(names)), ["Plt." if name == "Platelets" else name for name in names])
        inset.set_ylim(0, 1)
        inset.set_yticks([0, 0.5, 1] if not place else [])
        inset.set_title(f"query {query}")
    return figure


def detections(made: Specimen) -> Figure:
    """Stage 12: the detections of plain DETR and DINO in the same image."""
    figure, grid = sheet(9.0, nrows=2)
    picture = Image.open(made.record.path)
    dino = Detector.load(DINO_WEIGHTS).predict(made.record.path, threshold=0.4)[0]
    for axes, found, name in (
        (grid[0], made.trace.detections.above(0.8), "plain DETR, scores of 0.8 and more"),
        (grid[1], dino, "DINO, scores of 0.4 and more"),
    ):
        axes.imshow(draw(picture, found))
        bare(axes, name)
    return figure
