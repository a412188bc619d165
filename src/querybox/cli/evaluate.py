"""``querybox evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from querybox.cli.model import load_model, require_order
from querybox.cli.predict import remove_older
from querybox.cli.progress import progress_bar
from querybox.cli.streams import print_text
from querybox.cli.tables import table
from querybox.errors import ConfigError
from querybox.files import output_folder, require_own, write_text
from querybox.html import metric
from querybox.precision import Precision
from querybox.text import counted, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from querybox.evaluation.panoptic_quality import PanopticQuality
    from querybox.evaluation.result import Evaluation

METRICS, RESULTS = "metrics.json", "results.json"


def evaluate(
    model: Path,
    data: str,
    /,
    *,
    split: str | None = None,
    output: Path = Path("evaluation"),
    inspect: int = 0,
    tile: int | Literal["auto"] | None = None,
    overlap: float = 0.2,
    batch_size: int = 8,
    precision: Precision = "float32",
    tuned: bool = False,
    trust: bool = False,
    allow_network: bool = False,
) -> None:
    """Evaluate a model on an annotated dataset.

    Prints the COCO metrics, the AP of each class, and the number of errors of each type. The output folder receives
    them as metrics.json, an HTML report, and all detections as results.json in the COCO results format, with the
    category ids of the data.

    ```
    querybox evaluate run photos/ --split val      # a run's best model
    querybox evaluate model.safetensors test.json  # weights, a COCO file
    querybox evaluate run photos/ --inspect 20     # with inspector pages of the 20 worst images
    querybox evaluate run aerial/ --tile 640       # small objects in large images
    ```

    Args:
        model: A checkpoint of any layout, a run folder (its best model, or else its last), or an exported model
            (.onnx, .xml for OpenVINO, .pt2 for PyTorch, .pte for ExecuTorch).
        data: A dataset: COCO, Pascal VOC, YOLO or the format of an annotation tool; or the URL of shards.
        split: Split of the dataset, such as val; required if it has several.
        output: Folder for the results.
        inspect: Number of worst images, those with the lowest F1, to show in the report, each with an inspector page.
            Inspector pages require a checkpoint in float32. They show the forward pass over a whole image, and are
            not written with --tile.
        tile: Search images also in tiles of this side in pixels, for small objects in large images; auto for tiles in
            which objects appear as large as in training. No tiles by default.
        overlap: Minimum overlap of neighbouring tiles, as a fraction of their side (0-0.9).
        batch_size: Images per forward pass on an accelerator; the result does not depend on it.
        precision: Precision of a checkpoint's computations: float32, bf16, fp16, or auto. auto is bf16 if the device
            computes it natively, otherwise float32. bf16 and fp16 are less accurate, and faster only on such devices.
        tuned: Run a checkpoint with the engine, precision and number of threads that `querybox benchmark --tune` found
            to be the fastest on this machine.
        trust: Trust the source of a .pt2 or .pte file, which may execute code.
        allow_network: Open the URLs of shards that the dataset is, or that its file has.
    """
    from querybox.data import read_dataset
    from querybox.detector import Detector
    from querybox.evaluation.evaluate import evaluate as run
    from querybox.report import WORST, write_report
    from querybox.runfile import REPORT
    from querybox.terminal import Console

    require_order("querybox evaluate", model, [data])
    if inspect < 0:
        raise ConfigError(f"--inspect got {inspect}; expected a number of images, 0 or more")
    check_output(output)
    detector = load_model(model, trusted=trust, precision=precision, tuned=tuned)
    dataset = read_dataset(data, split, allow_network=allow_network)
    with output_folder(output):
        with progress_bar(len(dataset.images)) as step:
            evaluation = run(
                detector, dataset, tile=tile, overlap=overlap, batch_size=batch_size, callback=step
            )
        remove_older(output, (METRICS, RESULTS, REPORT))
        inspected = detector if inspect and tile is None and isinstance(detector, Detector) else None
        with progress_bar(inspect, "Inspecting") as advance:
            report = write_report(
                output, evaluation, dataset, worst=inspect or WORST, detector=inspected, callback=advance
            )
        evaluation.to_json(output / METRICS)
        write_text(output / RESULTS, to_json(evaluation.to_coco()))
    Console().print(*metrics_tables(evaluation), classes_table(evaluation), errors_table(evaluation))
    if inspect and inspected is None:
        print_text(
            f"{model} cannot be inspected: the report shows the worst images without inspector pages; evaluate a "
            "checkpoint in float32, without tiles, for these"
        )
    print_text(f"Results are in {output}, the report is {report}")


def check_output(output: Path) -> None:
    """Raise ConfigError if files in the output folder have the names of new ones, but are not those of an evaluation.

    An evaluation is recognised by its report, which is written before the other files.
    """
    from querybox.runfile import REPORT

    require_own(output / REPORT)
    others = [name for name in (METRICS, RESULTS) if (output / name).exists()]
    if others and not (output / REPORT).exists():
        raise ConfigError(
            f"{output / others[0]}: exists, and is not of an evaluation, which has a {REPORT} beside it; expected a "
            "new folder: set another --output"
        )


def metrics_tables(evaluation: Evaluation) -> list[Table]:
    """Show the 12 COCO metrics, of boxes and, if there are masks, of masks and boundaries, and panoptic quality."""
    title = f"{counted(evaluation.objects, 'object')} in {counted(evaluation.images, 'image')}"
    tables = [metrics_table(title, evaluation.metrics)]
    if (masks := evaluation.masks) is not None:
        objects = sum(one.objects for one in masks.categories)
        title = f"{counted(objects, 'mask')} in {counted(masks.images, 'image')}"
        tables.append(metrics_table(title, masks.metrics))
        tables.append(metrics_table("boundaries of the masks", masks.boundary_metrics))
    if evaluation.panoptic is not None:
        tables.append(panoptic_table(evaluation.panoptic))
    return tables


def metrics_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Show the 12 COCO metrics, precision on the left and recall on the right."""
    numbers = [(name, metric(value)) for name, value in metrics.items()]
    half = len(numbers) // 2
    rows = [precision + recall for precision, recall in zip(numbers[:half], numbers[half:], strict=True)]
    return table(title, ["precision", "", "recall", ""], rows, numeric=[1, 3])


def classes_table(evaluation: Evaluation) -> Table:
    """Show each class."""
    return table("", ["class", "objects", "AP", "AP50"], evaluation.category_rows(), numeric=[1, 2, 3])


def errors_table(evaluation: Evaluation) -> Table:
    """Show the numbers of false negatives and false positives of each error type."""
    title = f"errors at a score threshold of {metric(evaluation.operating_point.threshold)}, which has the best F1"
    heads = ["", "false negatives", "false positives"]
    return table(title, heads, evaluation.error_rows(), numeric=[1, 2])


def panoptic_table(panoptic: PanopticQuality) -> Table:
    """Show the panoptic quality of all classes, of things, of stuff, and of each class."""
    title = f"panoptic quality at score {metric(panoptic.threshold)}"
    rows = panoptic.rows()
    groups = len(panoptic.groups)
    return table(title, ["", "PQ", "SQ", "RQ"], rows[:groups], rows[groups:], numeric=[1, 2, 3])
