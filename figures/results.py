"""Figures of guides that are made with the shipped detector: what it finds, and what is found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.sheet import COLOURS, DASHES, HATCHES, frame, save, sheet, show, write
from figures.specimen import DINO_WEIGHTS, EXAMPLE, IMAGE
from querybox.boxes import to_cxcywh
from querybox.data import DetectionData, read_dataset, validate
from querybox.data.image import read_image
from querybox.data.validate import SplitReport
from querybox.detector import Detector, load
from querybox.evaluation.evaluate import evaluate
from querybox.evaluation.result import IOU_THRESHOLDS, RECALLS, Evaluation
from querybox.exporting import ExportedModel, export
from querybox.inference.detections import Detections
from querybox.inference.predict import predict
from querybox.pixels import as_pixels
from querybox.text import to_json

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MADE_OF = "examples/blood_cells/weights.safetensors"
THRESHOLDS = (0.15, 0.5)
FAULTS = {
    "clipped_box": (-60, 60, 180, 170),
    "outside_box": (480, -120, 100, 70),
    "zero_size_box": (440, 130, 0, 90),
    "negative_size_box": (470, 420, -110, -80),
}
"""Boxes (x, y, width, height) in pixels of the photo of 640 x 480, by the finding about them."""


class Runtime(NamedTuple):
    """An exported model, and what it finds."""

    found: Detections
    megabytes: float


def picture(detector: Detector | ExportedModel, threshold: float) -> Detections:
    """Return what is found in the photo."""
    (found,) = predict(detector, EXAMPLE / "images" / IMAGE, threshold=threshold)
    return found


def thresholds() -> Figure:
    """Draw what is found at two thresholds of the score."""
    detector = Detector.load(DINO_WEIGHTS)
    figure, grid = sheet(2.5, nrows=1, ncols=2)
    for axes, threshold in zip(grid, THRESHOLDS, strict=True):
        found = picture(detector, threshold)
        draw(axes, found)
        axes.set_title(f"--threshold {threshold:g}: {len(found)} cells", pad=4)
    return figure


def draw(axes: Axes, found: Detections) -> None:
    """Draw the photo and detections, each class in its colour and line style."""
    pixels = as_pixels(read_image(EXAMPLE / "images" / IMAGE))
    height, width = pixels.shape[1:]
    show(axes, pixels)
    boxes = to_cxcywh(found.boxes_xyxy / torch.tensor([width, height] * 2))
    for box, label in zip(boxes.tolist(), found.labels.tolist(), strict=True):
        frame(axes, box, COLOURS[label], dashes=DASHES[label], width=1.2)


def runtimes(data: DetectionData) -> dict[str, Runtime]:
    """Export the detector to ONNX and to OpenVINO in int8, and return what they find in the photo.

    Args:
        data: Images to calibrate int8 with.
    """
    detector = Detector.load(DINO_WEIGHTS)
    found = {"PyTorch": Runtime(picture(detector, 0.5), DINO_WEIGHTS.stat().st_size / 1e6)}
    with TemporaryDirectory() as folder:
        onnx, xml = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        for name, done in (
            ("ONNX", export(detector, onnx, to="onnx")),
            ("OpenVINO, int8", export(detector, xml, to="openvino", precision="int8", calibration=data)),
        ):
            size = sum(file.stat().st_size for file in done.files) / 1e6
            found[name] = Runtime(picture(load(done.files[0]), 0.5), size)
    return found


def exported(found: Mapping[str, Runtime]) -> Figure:
    """Draw what each runtime finds, with the size of its file and the largest difference of an edge from the first."""
    figure, grid = sheet(2.45, nrows=1, ncols=len(found))
    reference = next(iter(found.values())).found
    for axes, (name, runtime) in zip(grid, found.items(), strict=True):
        draw(axes, runtime.found)
        axes.set_title(f"{name}\n{runtime.megabytes:.0f} MB", pad=4)
        if runtime.found is not reference:
            text = (
                f"{len(runtime.found)} cells, edges within\n{difference(runtime.found, reference):.1g} pixels"
            )
        else:
            text = f"{len(reference)} cells"
        axes.set_xlabel(text, fontsize=9)
    return figure


def difference(found: Detections, reference: Detections) -> float:
    """Return the largest difference of an edge in pixels between detections and the nearest ones of a reference."""
    distances = torch.cdist(found.boxes_xyxy, reference.boxes_xyxy, p=torch.inf)
    return float(distances.min(1).values.max())


def evaluated(data: DetectionData) -> Figure:
    """Draw precision against recall at three IoU thresholds, and the errors of each type."""
    result = evaluate(Detector.load(DINO_WEIGHTS), data)
    figure, (left, right) = sheet(2.7, nrows=1, ncols=2)
    for number, threshold in enumerate((0.5, 0.75, 0.9)):
        row = int(np.abs(IOU_THRESHOLDS - threshold).argmin())
        mean = np.nanmean(result.precision[row], 1)
        left.plot(
            RECALLS,
            mean,
            color=COLOURS[number],
            linestyle=DASHES[number],
            label=f"IoU {threshold:g}",
            linewidth=2,
        )
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(f"AP {result.metrics['AP']:.2f}, AP50 {result.metrics['AP50']:.2f}", pad=4)
    left.legend(loc=(0.06, 0.43), frameon=False)
    draw_errors(right, result)
    return figure


def draw_errors(axes: Axes, result: Evaluation) -> None:
    """Draw the numbers of errors of each type at the operating point."""
    rows = [row for row in result.error_rows()[:-1] if any(count not in ("", "0") for count in row[1:])]
    names = [row[0].replace("_", " ") for row in rows]
    places = np.arange(len(rows))
    for shift, column, title in ((-0.2, 1, "false negatives"), (0.2, 2, "false positives")):
        counts = [int((row[column] or "0").replace(",", "")) for row in rows]
        axes.barh(places + shift, counts, 0.38, color=COLOURS[column], hatch=HATCHES[column - 1], label=title)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_title(f"errors at score {result.operating_point.threshold:.2f}", pad=4)
    axes.legend(frameon=False, fontsize=9)


def faults() -> Figure:
    """Draw boxes that `querybox validate` finds fault with, over the photo and beyond it."""
    report = validated()
    pixels = as_pixels(read_image(EXAMPLE / "images" / IMAGE))
    height, width = pixels.shape[1:]
    figure, axes = sheet(4.4)
    show(axes, pixels, grey=True)
    for number, finding in enumerate(one for one in report.findings if one.kind in FAULTS):
        corners = finding.places[0].box_xyxy
        assert corners is not None
        x0, x1 = sorted(corners[::2])
        y0, y1 = sorted(corners[1::2])
        box = torch.tensor([[x0, y0, x1, y1]]) / torch.tensor([width, height] * 2)
        frame(axes, to_cxcywh(box)[0].tolist(), COLOURS[number], dashes=DASHES[number % 3])
        place = {"ha": "center", "va": "top", "fontsize": 11}
        write(axes, (x0 + x1) / 2 / width, y1 / height + 0.02, finding.kind, color=COLOURS[number], **place)
    axes.set(xlim=(-0.16, 1.02), ylim=(1.0, -0.28))
    return figure


def validated() -> SplitReport:
    """Return the report of a dataset of the photo with the boxes in `FAULTS`."""
    document = {
        "images": [{"id": 1, "file_name": IMAGE, "width": 640, "height": 480}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
            for number, box in enumerate([*FAULTS.values(), (250, 180, 90, 90)], start=1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / IMAGE).write_bytes((EXAMPLE / "images" / IMAGE).read_bytes())
        (Path(folder) / "train.json").write_text(to_json(document), encoding="utf-8")
        return validate(folder).splits["train"]


def some(split: str, images: int) -> DetectionData:
    """Return the first images of a split of the example."""
    data = read_dataset(EXAMPLE, split)
    return data.only({record.id for record in data.images[:images]})


def main() -> None:
    """Write the figures."""
    save(thresholds(), IMAGES / "predict.png", MADE_OF)
    save(exported(runtimes(some("train", 8))), IMAGES / "export.png", MADE_OF)
    save(evaluated(read_dataset(EXAMPLE, "test")), IMAGES / "evaluate.png", MADE_OF)
    save(faults(), IMAGES / "validate.png", "nothing but its script")
