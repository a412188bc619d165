"""What the report says, in its order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from querybox.data import DetectionData, ImageRecord
from querybox.diagnosis.record import read_history
from querybox.evaluation.confusion import MATCH_IOU
from querybox.evaluation.errors import LEAST_IOU, REASONS
from querybox.evaluation.result import Evaluation
from querybox.files import write_text
from querybox.modules.detector import DetectionTransformer
from querybox.notebook import share
from querybox.report import charts, page, pictures
from querybox.report.diagnosis import diagnosis_section
from querybox.report.left_out import left_out_section

MEANINGS = {
    "AP": "average precision, mean over IoU 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects, below 32 x 32 pixels",
    "APm": "AP of medium objects, below 96 x 96 pixels",
    "APl": "AP of large objects",
    "AR1": "average recall with 1 detection an image and class",
    "AR10": "average recall with 10",
    "AR100": "average recall with 100",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}

REASON_MEANINGS = {
    "not found": "nothing was detected there that could have meant the object",
    "wrong class": "an object under another class's name",
    "loose box": f"its class, but the box overlaps the object by an IoU of {LEAST_IOU} to {MATCH_IOU} only",
    "wrong class and loose box": "both",
    "duplicate": "an object that a better detection has found already",
    "background": f"no object there: an IoU below {LEAST_IOU} with every one. Or it was forgotten when labelling",
}


WORST = 4
"""Images that are drawn where nobody asks for more."""


def write_report(
    run_dir: str | Path,
    evaluation: Evaluation,
    data: DetectionData,
    *,
    worst: int = WORST,
    detector: DetectionTransformer | None = None,
    each: Callable[[ImageRecord], object] = lambda _: None,
) -> Path:
    """Write ``report.html`` into `run_dir` and return its path.

    Curves of the training, its diagnosis, its settings and its environment are part of it where the folder holds
    ``metrics.csv``, ``record.json``, ``run.yaml`` and ``environment.json``; a folder without them gets the report of
    the evaluation.

    Args:
        run_dir: The folder of the run; it exists.
        evaluation: What was measured.
        data: The images that it was measured on; the best and the worst are drawn.
        worst: How many of the worst.
        detector: The model, to look into it with the worst images: a page for each in the folder ``inspect``, to
            which the report links. None: no such pages.
        each: Is called with each of these images when its page is written, to show progress.
    """
    run_dir = Path(run_dir)
    data = data.only(evaluation.detections)  # those that could be read
    chosen = pictures.worst_images(evaluation, data, worst)
    pages = pictures.look_into(run_dir, detector, chosen, data, each) if detector else {}
    history = read_history(run_dir / "metrics.csv")
    sections = [
        summary(evaluation),
        diagnosis_section(run_dir),
        training_curves(history) if history else "",
        results(evaluation),
        mistakes(evaluation),
        left_out_section(run_dir, evaluation),
        pictures.gallery(evaluation, data, chosen, pages),
        page.file_section("Settings", run_dir / "run.yaml"),
        page.file_section("Environment", run_dir / "environment.json"),
    ]
    kind = "Training" if history else "Evaluation"
    subtitle = f"Measured on {data.source} with querybox"
    path = run_dir / "report.html"
    write_text(path, page.page(f"{kind} report: {run_dir.resolve().name}", subtitle, sections))
    return path


def summary(evaluation: Evaluation) -> str:
    """Say the most important numbers first."""
    agreement = evaluation.agreement
    tiles = {
        "AP": share(evaluation.metrics["AP"]),
        "AP50": share(evaluation.metrics["AP50"]),
        "AP75": share(evaluation.metrics["AP75"]),
        "best F1": share(agreement.f1),
        "its score threshold": share(agreement.threshold),
        "images": f"{evaluation.images:,}",
        "objects": f"{evaluation.objects:,}",
    }
    return page.tiles(tiles)


def training_curves(history: Mapping[str, Sequence[float]]) -> str:
    """Draw the columns of ``metrics.csv`` over the epochs."""
    groups = {
        "Loss, all decoder layers": ["loss"],
        "Loss, last decoder layer": ["loss_cls", "loss_bbox", "loss_iou"],
        "Average precision": ["AP", "AP50", "AP75"],
        "Average precision by object size": ["APs", "APm", "APl"],
        "Learning rate": ["lr"],
        "Gradient norm, before clipping": ["grad_norm"],
    }
    figures = []
    for title, names in groups.items():
        curves = {name: history[name] for name in names if name in history}
        curves = {name: values for name, values in curves.items() if not all(map(math.isnan, values))}
        if curves:
            figures.append(page.figure(charts.line_chart(title, history["epoch"], curves), title))
    return page.section("Training", page.grid(figures))


def results(evaluation: Evaluation) -> str:
    """Tabulate the 12 numbers and the classes."""
    numbers = [[name, share(value), MEANINGS[name]] for name, value in evaluation.metrics.items()]
    classes = [
        [one.category.name, f"{one.objects:,}", share(one.AP), share(one.AP50)]
        for one in evaluation.categories
    ]
    tables = [
        page.table(["metric", "value", "meaning"], numbers, numeric={1}),
        page.table(["class", "objects", "AP", "AP50"], classes, numeric={1, 2, 3}),
    ]
    note = "A hyphen stands where the data have no such object, so that nothing can be measured."
    return page.section("Results", page.grid(tables) + page.paragraph(note))


def mistakes(evaluation: Evaluation) -> str:
    """Draw precision against recall, and what is taken for what."""
    agreement = evaluation.agreement
    figures = [
        page.figure(charts.precision_recall_chart(evaluation), "Precision against recall, by class"),
        page.figure(
            charts.confusion_chart(evaluation),
            "Confusion matrix",
            wide=len(evaluation.categories) > charts.FEW,
        ),
    ]
    counts = page.table(
        ["mistake", "missed objects", "false alarms"], evaluation.mistake_rows(), numeric={1, 2}
    )
    note = (
        f"Mistakes and confusion matrix: detections that score at least {share(agreement.threshold)}, the "
        f"threshold with the best F1 ({share(agreement.f1)}: precision {share(agreement.precision)}, recall "
        f"{share(agreement.recall)}), matched to objects at IoU {MATCH_IOU}. Chosen on these very images: "
        "expect a little less on new ones."
    )
    meanings = page.table(
        ["mistake", "what it is"], [[reason, REASON_MEANINGS[reason]] for reason in REASONS]
    )
    tables = page.grid([counts, meanings])
    return page.section("Where it goes wrong", page.grid(figures) + tables + page.paragraph(note))
