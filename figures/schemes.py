"""Figures of guides that show how things belong together: diagrams, rules of the code, and numbers of the docs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from figures.diagram import arrow, box, diagram, label
from figures.sheet import COLOURS, DASHES, INK, save, sheet
from querybox.training.auto import IMAGE_SIZES, Facts, choose_sizes
from querybox.training.resources import Resources

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ORANGE, BLUE, RED, GREEN = COLOURS[:4]
GREY = "#8a8f98"


def shards() -> Figure:
    """Draw the ways of an image from a tar and from a Parquet file to a training process."""
    figure, axes = diagram(5.4)
    for x, title in ((1.35, "storage"), (5.0, "read"), (8.55, "training processes")):
        label(axes, (x, 5.0), title, size=10, va="baseline")
    axes.add_patch(Rectangle((0.02, 2.1), 2.66, 2.6, fill=False, edgecolor=INK, linewidth=0.8, linestyle=":"))
    box(axes, (1.35, 4.1), "train-000000.tar\n1,000 images", 2.5, ORANGE, 1.0)
    box(axes, (1.35, 2.7), "train-0.parquet\nrow groups of 100", 2.5, BLUE, 1.0)
    box(axes, (1.35, 0.75), "index, made once:\nplaces, sizes, boxes", 2.6, RED, 1.0)
    box(axes, (5.0, 4.1), "the bytes of\none image", 2.4, ORANGE, 1.0)
    box(axes, (5.0, 2.7), "a row group, held\nup to 512 MiB", 2.6, BLUE, 1.0)
    box(axes, (5.0, 0.75), "order of an epoch:\nseed and epoch alone", 2.9, RED, 1.0)
    for number, height in enumerate((3.9, 2.6)):
        box(
            axes,
            (8.55, height),
            f"process {number + 1}: images\n{number + 1}, {number + 3}, {number + 5} ...",
            2.6,
            GREEN,
            1.0,
        )
    arrow(axes, (2.65, 4.1), (3.75, 4.1), ORANGE)
    arrow(axes, (2.65, 2.7), (3.65, 2.7), BLUE)
    arrow(axes, (1.35, 2.1), (1.35, 1.3), RED, dashed=True)
    arrow(axes, (2.7, 0.75), (3.5, 0.75), RED)
    axes.plot([6.5, 9.93, 9.93], [0.75, 0.75, 3.9], color=RED, linewidth=1.3)
    for height in (2.6, 3.9):
        arrow(axes, (9.95, height), (9.82, height), RED)
    for height in (4.1, 2.7):
        for end in (3.9, 2.6):
            arrow(axes, (6.25 if height > 3 else 6.35, height), (7.2, end), ORANGE if height > 3 else BLUE)
    return figure


def interruptions() -> Figure:
    """Draw two sessions of a run on a line of time."""
    figure, axes = diagram(3.6)
    axes.plot([0.4, 5.2], [2.3, 2.3], color=ORANGE, linewidth=5, solid_capstyle="butt")
    axes.plot([5.2, 6.3], [2.3, 2.3], color=BLUE, linewidth=5, solid_capstyle="butt", linestyle=(0, (1, 0.6)))
    axes.plot([5.2, 9.6], [0.8, 0.8], color=RED, linewidth=5, solid_capstyle="butt")
    for x in (2.0, 3.6, 5.2):
        axes.plot([x], [2.3], "o", color="white", markeredgecolor=ORANGE, markersize=9, markeredgewidth=2)
    label(axes, (3.6, 3.0), "checkpoints: best AP, end of an epoch, every ten minutes")
    label(axes, (6.35, 2.3), "killed", ha="left", color=BLUE)
    label(axes, (6.35, 1.85), "these updates are lost ...", ha="left", size=8.5)
    arrow(axes, (5.2, 2.1), (5.2, 1.0), RED, dashed=True)
    label(axes, (5.0, 1.35), "--resume", ha="right", color=RED)
    label(axes, (7.4, 0.35), "... and made again, with the same images in the same order")
    label(axes, (0.4, 1.9), "first session", ha="left", size=8.5)
    label(axes, (9.6, 1.15), "second session", ha="right", size=8.5)
    return figure


def processes() -> Figure:
    """Draw how a batch of eight images is divided among four processes."""
    figure, axes = diagram(4.0)
    label(axes, (1.2, 3.6), "a batch of 8", size=10)
    for number in range(8):
        x, y = 0.75 + 0.9 * (number % 2), 2.9 - 0.75 * (number // 2)
        box(axes, (x, y), str(number + 1), 0.7, COLOURS[number % 4], 0.6)
    for process in range(4):
        height = 2.9 - 0.75 * process
        box(
            axes,
            (4.3, height),
            f"process {process + 1}: images {process + 1}, {process + 5}",
            3.3,
            COLOURS[process],
            0.6,
        )
        arrow(axes, (2.05, 1.8), (2.6, height), COLOURS[process])
        arrow(axes, (6.0, height), (6.7, 1.8), COLOURS[process])
    box(
        axes,
        (8.3, 1.8),
        "sum of the gradients,\nnormalised by the\nobjects of all images:\none update",
        2.9,
        height=2.2,
    )
    return figure


def convert() -> Figure:
    """Draw the layouts that are read and written."""
    figure, axes = diagram(5.0)
    label(axes, (1.5, 4.7), "read", size=10)
    label(axes, (8.5, 4.7), "written, --to", size=10)
    read = ("authors' code", "MMDetection 2.x, 3.x", "Hugging Face, the Hub", "run folder, querybox")
    written = ("facebook", "mmdet2, mmdet3", "huggingface", "querybox")
    box(axes, (5.0, 2.25), "one model,\nthe same tensors\nbit for bit", 2.4, height=1.8, size=10)
    for number, (source, target) in enumerate(zip(read, written, strict=True)):
        height = 3.85 - 1.07 * number
        box(axes, (1.5, height), source, 2.8, COLOURS[number], 0.75)
        box(axes, (8.5, height), target, 2.3, COLOURS[number], 0.75)
        arrow(axes, (2.95, height), (3.75, 2.25 + 0.25 * (1.5 - number)), COLOURS[number])
        arrow(axes, (6.25, 2.25 + 0.25 * (1.5 - number)), (7.3, height), COLOURS[number])
    return figure


def fine_tune() -> Figure:
    """Draw what becomes of the rows of a class head whose classes are others."""
    figure, axes = diagram(4.6)
    label(axes, (1.8, 4.3), "class head of the weights", size=10)
    label(axes, (8.0, 4.3), "of your detector", size=10)
    old, new = ("cat", "dog", "zebra", "no object"), ("Dog", "cat", "owl", "no object")
    heights = (3.5, 2.6, 1.7, 0.8)
    for height, name in zip(heights, old, strict=True):
        box(axes, (1.8, height), name, 2.2, ORANGE if name != "zebra" else BLUE)
    for height, name in zip(heights, new, strict=True):
        box(axes, (8.0, height), name, 2.2, ORANGE if name != "owl" else RED)
    for start, end in ((0, 1), (1, 0), (3, 3)):
        arrow(axes, (2.95, heights[start]), (6.85, heights[end]), ORANGE)
    label(axes, (3.1, 1.7), "left out", ha="left", color=BLUE)
    label(axes, (6.7, 1.7), "random weights", ha="right", color=RED)
    label(axes, (4.9, 0.15), "backbone, encoder, decoder and boxes are kept as they are", size=9)
    return figure


def run_files() -> Figure:
    """Draw the precedence of settings."""
    figure, axes = diagram(4.2)
    rows = (
        ("recipe: detr_r50", ("lr=1e-4", "batch_size=16", "epochs=150"), ORANGE, 3.5),
        ("run file", ("", "batch_size=8", "epochs=40"), BLUE, 2.5),
        ("command line", ("", "", "epochs=5"), RED, 1.5),
        ("the run", ("lr=1e-4", "batch_size=8", "epochs=5"), INK, 0.45),
    )
    for name, values, colour, height in rows:
        box(axes, (1.6, height), name, 2.8, colour)
        for x, value in zip((3.5, 5.3, 7.9), values, strict=True):
            label(axes, (x, height), value, ha="left", size=10, color=colour)
    axes.plot([0.2, 9.8], [0.98, 0.98], color=INK, linewidth=1)
    return figure


MESSAGE = (
    ("where", "train-0.tar:"),
    ("what was found", "is compressed by gzip;"),
    ("what was expected", "expected a tar without compression:"),
    ("the cure", "decompress it"),
)
"""The parts of a message, and its text."""


def messages() -> Figure:
    """Draw the parts of an error message."""
    figure, axes = diagram(3.1)
    places = ((0.3, 1.9), (2.7, 1.9), (0.3, 0.5), (6.5, 0.5))
    for (kind, text), (x, y), colour in zip(MESSAGE, places, COLOURS, strict=False):
        label(axes, (x, y), text, ha="left", size=10, family="DejaVu Sans Mono", color=colour)
        label(axes, (x, y + 0.55), kind, ha="left", size=10, weight="bold", color=colour)
    return figure


def train() -> Figure:
    """Draw what a run reads and writes, and what its folder is for."""
    figure, axes = diagram(5.0)
    box(axes, (1.45, 4.2), "--weights, if any", 2.6, ORANGE)
    box(axes, (1.45, 3.1), "your dataset", 2.6, ORANGE)
    box(axes, (4.55, 3.65), "querybox train", 2.4, INK, 1.0, 10)
    for height in (4.2, 3.1):
        arrow(axes, (2.85, height), (3.25, 3.65), ORANGE)
    label(axes, (8.4, 4.75), "run folder", size=10)
    files = (
        ("best.safetensors", "predict, evaluate, export"),
        ("report.html", "AP, errors, worst images"),
        ("record, metrics.csv", "querybox diagnose"),
        ("run.yaml", "repeats the run"),
        ("checkpoint", "--resume"),
    )
    for number, (name, use) in enumerate(files):
        height = 4.1 - 0.88 * number
        box(axes, (8.4, height), f"{name}\n{use}", 3.0, COLOURS[1 + number % 3], 0.78, 8.5)
        arrow(axes, (5.85, 3.65), (6.8, height), INK)
    label(axes, (3.2, 1.3), "held out: validation images,\nwhich no update sees", size=9)
    arrow(axes, (1.45, 2.7), (2.2, 1.75), INK, dashed=True)
    arrow(axes, (4.0, 1.75), (4.55, 3.05), INK, dashed=True)
    return figure


TREES = (
    ("COCO", "photos/\n  annotations/\n    train.json\n    val.json\n  images/\n    1.jpg ..."),
    ("YOLO", "photos/\n  data.yaml\n  images/train/\n    1.jpg ...\n  labels/train/\n    1.txt ..."),
    ("Pascal VOC", "photos/\n  Annotations/\n    1.xml ...\n  JPEGImages/\n    1.jpg ..."),
)
"""Layouts of formats."""


def datasets() -> Figure:
    """Draw three layouts that become the same dataset."""
    figure, axes = diagram(5.2)
    for number, (name, tree) in enumerate(TREES):
        x, colour = 1.7 + 3.3 * number, COLOURS[number]
        box(axes, (x, 3.2), "", 3.0, colour, 3.0)
        label(axes, (x, 5.0), name, size=10, weight="bold", color=colour)
        label(axes, (x - 1.3, 3.2), tree, size=9, ha="left", family="DejaVu Sans Mono")
        arrow(axes, (x, 1.65), (5.0 + 0.9 * (number - 1), 1.05), colour)
    box(axes, (5.0, 0.6), "train, val: images, boxes, classes, findings", 6.4, INK, 0.8, 10)
    return figure


def checkpoints() -> Figure:
    """Draw how the content of a file decides about the model that is built of it."""
    figure, axes = diagram(4.6)
    box(axes, (1.5, 2.3), "detr-r50.pth\nnothing in it\nis executed", 2.6, INK, 1.5, 10)
    steps = (
        ("names of tensors", "layout: its authors', MMDetection ..."),
        ("shapes of tensors", "backbone, width, layers, queries"),
        ("config.json, meta", "classes, heads, preprocessing"),
        ("neither says it", "assumed, and named by querybox info"),
    )
    for number, (found, means) in enumerate(steps):
        height, colour = 4.0 - 1.13 * number, COLOURS[number]
        box(axes, (4.55, height), found, 2.3, colour, 0.7)
        label(axes, (6.1, height), means, ha="left", color=colour)
        arrow(axes, (2.85, 2.3), (3.35, height), colour)
        arrow(axes, (5.75, height), (6.05, height), colour)
    return figure


def diagnose() -> Figure:
    """Draw the parts of a run's record that are examined, with a finding of each."""
    figure, axes = diagram(4.9)
    for x, title in ((1.5, "record of the run"), (4.75, "sign"), (8.5, "likely cause")):
        label(axes, (x, 4.6), title, size=10, va="baseline")
    rows = (
        ("data", "objects are found,\nclasses are swapped", "mixed_up_labels"),
        ("boxes", "objects are smaller\nthan a cell", "tiny_objects"),
        ("schedule", "steps are 1,000 times\nas large as usual", "lr_too_high"),
        ("matching", "the same boxes\nin all images", "blind_queries"),
    )
    for number, (part, sign, cause) in enumerate(rows):
        height, colour = 3.85 - 1.08 * number, COLOURS[number]
        box(axes, (1.5, height), part, 2.2, colour, 0.8, 10)
        box(axes, (4.75, height), sign, 2.9, colour, 0.85)
        box(axes, (8.5, height), cause, 2.6, colour, 0.8)
        arrow(axes, (2.7, height), (3.2, height), colour)
        arrow(axes, (6.3, height), (7.1, height), colour)
    return figure


FACTS = Facts(images=200, objects=800, max_objects=8, classes=("cell",), small_object=0.1, aspect=4 / 3)
"""Facts of a small dataset of photos."""


def sizes() -> Figure:
    """Draw the size of images that `recipe: auto` takes for the size of the small objects in them."""
    figure, axes = sheet(2.5)
    shares = np.linspace(0.02, 0.12, 501)
    devices = (("GPU", "cuda", None), ("CPU", "cpu", None), ("CPU, below 20 minutes", "cpu", 600.0))
    for number, (name, device, limit) in enumerate(devices):
        resources = replace(Resources.here(), device=device)
        chosen = [
            choose_sizes(replace(FACTS, small_object=share), resources, limit)["image_size"]
            for share in shares
        ]
        axes.plot(
            100 * shares, chosen, color=COLOURS[number], linestyle=DASHES[number], linewidth=2.2, label=name
        )
    axes.set(
        xlabel="side of the smallest tenth of the objects, % of the short side",
        ylabel="data.image_size",
        yticks=IMAGE_SIZES,
    )
    axes.legend(frameon=False)
    return figure


ENGINES = re.compile(r"^\| \| querybox \| ONNX Runtime .*?\n\n", re.MULTILINE | re.DOTALL)
"""The table of times in docs/benchmarks.md."""
BENCHMARKS = IMAGES.parent / "benchmarks.md"


def engine_times() -> tuple[list[str], dict[str, list[float | None]]]:
    """Return the engines, and the milliseconds of each model with them, that docs/benchmarks.md states."""
    found = ENGINES.search(BENCHMARKS.read_text(encoding="utf-8"))
    assert found is not None
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in found[0].strip().splitlines()
    ]
    shown = rows[0].index("transformers") + 1
    times = {row[0]: [float(cell) if cell else None for cell in row[1:shown]] for row in rows[2:]}
    return rows[0][1:shown], times


def speed() -> Figure:
    """Draw the time of an image with each engine."""
    engines, times = engine_times()
    figure, grid = sheet(2.6, nrows=1, ncols=len(times), sharey=True)
    for axes, (model, values) in zip(grid, times.items(), strict=True):
        axes.barh(engines, [value or 0 for value in values], color=[*[BLUE] * (len(engines) - 1), GREY])
        for place, value in enumerate(values):
            axes.text(
                value or 0, place, f" {value:g}" if value else " not measured", va="center", fontsize=8.5
            )
        axes.set_title(model, pad=4)
        axes.set_xlim(0, 1.3 * max(value or 0 for value in values))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    grid[0].invert_yaxis()
    figure.supxlabel("milliseconds of an image of 640 x 640", fontsize=10)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "shards": shards,
    "interruptions": interruptions,
    "processes": processes,
    "convert": convert,
    "fine_tune": fine_tune,
    "run_files": run_files,
    "messages": messages,
    "train": train,
    "datasets": datasets,
    "checkpoints": checkpoints,
    "diagnose": diagnose,
    "sizes": sizes,
    "speed": speed,
}
"""Functions that draw the figures, by the name of the picture."""


def content(figure: Figure) -> str:
    """Return the SHA-256 of all texts and lines of a figure, which tells whether its picture is up to date."""
    drawn = [
        (
            axes.get_title(),
            [(text.get_text(), text.get_position()) for text in axes.texts],
            [np.round(np.asarray(line.get_xydata(), dtype=float), 3).tolist() for line in axes.lines],
        )
        for axes in figure.axes
    ]
    return hashlib.sha256(repr(drawn).encode()).hexdigest()


def main() -> None:
    """Write the figures."""
    for name, draw in FIGURES.items():
        figure = draw()
        save(figure, IMAGES / f"{name}.png", content(figure))
