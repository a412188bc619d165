"""``querybox evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from querybox.cli.model import Precision
from querybox.cli.tables import table
from querybox.errors import ConfigError
from querybox.html import metric

if TYPE_CHECKING:
    from rich.table import Table

    from querybox.evaluation.result import Evaluation


def evaluate(
    model: Path,
    data: Path,
    /,
    *,
    split: str | None = None,
    output: Path = Path("evaluation"),
    inspect: int = 0,
    batch_size: int = 8,
    precision: Precision = "float32",
    trust: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure how well a model finds the objects of a labelled dataset.

    Prints the COCO metrics, those of each class, and how many objects were missed and why. The output folder gets them
    as metrics.json, a report to open in a browser, and all detections as results.json, in the COCO result format with
    the data's own category ids.

    ```
    querybox evaluate run photos/ --split val      # a run's best model
    querybox evaluate model.safetensors test.json  # weights, a COCO file
    querybox evaluate run photos/ --inspect 20     # also the 20 worst images, and what the model saw in them
    ```

    Args:
        model: A checkpoint of any layout, a run folder: its best model, else its last; or an exported model:
            .onnx, .xml (OpenVINO), .pt2 (PyTorch).
        data: A dataset: COCO, Pascal VOC or YOLO, recognised from the path.
        split: Which split of the dataset, such as val; needed where it has several.
        output: Folder for the results.
        inspect: How many of the worst images, those with the lowest F1, the report shows with every mistake, each with
            a page to look into the model. These need a checkpoint in float32; exported models get the images alone.
        batch_size: Images in one forward pass, on an accelerator; it does not change the result.
        precision: What a checkpoint's model computes in: bf16 is faster and less exact.
        trust: Let a .pt2 file execute the code that it may hold.
    """
    from rich.console import Console

    from querybox.cli.model import load_model
    from querybox.cli.progress import progress_bar
    from querybox.data import read_dataset
    from querybox.detector import Detector
    from querybox.evaluation.evaluate import evaluate as run
    from querybox.report import WORST, write_report

    if inspect < 0:
        raise ConfigError(f"--inspect got {inspect}; expected a number of images, 0 or more")
    detector = load_model(model, trusted=trust, precision=precision)
    dataset = read_dataset(data, split)
    output.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(dataset.images)) as advance:
        evaluation = run(detector, dataset, batch_size=batch_size, callback=advance)
    evaluation.to_json(output / "metrics.json")
    (output / "results.json").write_text(json.dumps(evaluation.to_coco()), encoding="utf-8")
    inside = detector if inspect and isinstance(detector, Detector) else None
    with progress_bar(inspect, "Looking inside") as advance:
        report = write_report(
            output, evaluation, dataset, worst=inspect or WORST, detector=inside, callback=advance
        )

    console = Console()
    console.print(metrics_table(evaluation), classes_table(evaluation), errors_table(evaluation))
    if inspect and inside is None:
        console.print(
            f"{model} does not tell where it looked: the report shows the worst images without pages to look inside; "
            "evaluate a checkpoint in float32 for these",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"Results are in {output}, the report is {report}", soft_wrap=True, highlight=False)


def metrics_table(evaluation: Evaluation) -> Table:
    """Show the 12 COCO metrics, precision on the left and recall on the right."""
    numbers = [(name, metric(value)) for name, value in evaluation.metrics.items()]
    half = len(numbers) // 2
    rows = [precision + recall for precision, recall in zip(numbers[:half], numbers[half:], strict=True)]
    title = f"{evaluation.objects:,} objects in {evaluation.images:,} images"
    return table(title, ["precision", "", "recall", ""], rows, numeric=[1, 3])


def classes_table(evaluation: Evaluation) -> Table:
    """Show each class."""
    return table("", ["class", "objects", "AP", "AP50"], evaluation.category_rows(), numeric=[1, 2, 3])


def errors_table(evaluation: Evaluation) -> Table:
    """Show the numbers of false negatives and false positives of each error type."""
    title = f"errors at a score threshold of {metric(evaluation.operating_point.threshold)}, which has the best F1"
    heads = ["", "false negatives", "false positives"]
    return table(title, heads, evaluation.error_rows(), numeric=[1, 2])
