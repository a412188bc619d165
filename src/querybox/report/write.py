"""The report of a training run or an evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from querybox.data import DetectionData, ImageRecord
from querybox.data.findings import UNREADABLE
from querybox.data.validate import VALIDATION
from querybox.diagnosis import diagnose
from querybox.diagnosis.finding import HEADS
from querybox.diagnosis.record import RECORD, read_history, read_record
from querybox.evaluation.boundaries import BAND
from querybox.evaluation.confusion import MATCH_IOU
from querybox.evaluation.errors import ABBREVIATIONS, BACKGROUND_IOU
from querybox.evaluation.result import Evaluation
from querybox.files import write_text
from querybox.html import metric, render
from querybox.modules.detector import DetectionTransformer
from querybox.report import charts
from querybox.report.examples import best_images, make_example, worst_images, write_inspectors
from querybox.report.next_steps import next_steps
from querybox.report.worst_masks import draw_mask_pair, worst_masks
from querybox.runfile import ENVIRONMENT, REPORT, RUN_FILE

MEANINGS = {
    "AP": "average precision, mean over IoU 0.50 to 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects, below 32 x 32 pixels",
    "APm": "AP of medium objects, below 96 x 96 pixels",
    "APl": "AP of large objects",
    "AR1": "average recall with 1 detection per image and class",
    "AR10": "average recall with 10 detections",
    "AR100": "average recall with 100 detections",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}
ERROR_MEANINGS = {
    "classification": "an object detected as another class",
    "localization": f"the right class, but an IoU of only {BACKGROUND_IOU} to {MATCH_IOU} with the object",
    "both": f"another class and an IoU of only {BACKGROUND_IOU} to {MATCH_IOU}",
    "duplicate": "an object that is already matched to a detection with a higher score",
    "background": f"an IoU below {BACKGROUND_IOU} with every object; or an object that was not labelled",
    "missed": "an object that none of these errors covers",
    "all": "",
}
FILES = {"Settings": RUN_FILE, "Environment": ENVIRONMENT}
WORST = 4
"""How many of the worst images are shown by default."""


def write_report(
    run_dir: str | Path,
    evaluation: Evaluation,
    data: DetectionData,
    *,
    worst: int = WORST,
    detector: DetectionTransformer | None = None,
    callback: Callable[[ImageRecord], object] = lambda _: None,
) -> Path:
    """Write ``report.html`` into `run_dir` and return its path.

    The report includes training curves, a diagnosis, settings and the environment where the folder has
    ``metrics.csv``, ``record.json``, ``run.yaml`` and ``environment.json``.

    Args:
        run_dir: The folder of the run; it must exist.
        evaluation: What was measured.
        data: The images that it was measured on; the best and the worst of them are shown.
        worst: How many of the worst images and of the worst masks.
        detector: The model. If given, each of the worst images gets an inspector page in the folder ``inspect``, to
            which the report links.
        callback: Called with an image when its inspector page has been written, to show progress.
    """
    run_dir = Path(run_dir)
    data = data.only(evaluation.detections)  # without those that could not be read
    worst_records = worst_images(evaluation, data, worst)
    inspectors = write_inspectors(run_dir, detector, worst_records, data, callback) if detector else {}
    diagnosis = diagnose(run_dir) if (run_dir / RECORD).is_file() else None
    html = render(
        "report.html",
        name=run_dir.resolve().name,
        data=data.source,
        evaluation=evaluation,
        diagnosis=diagnosis,
        steps=next_steps(run_dir.resolve(), evaluation, diagnosis),
        finding_heads=HEADS,
        unreadable=unreadable_images(run_dir, evaluation),
        history=charts.training_charts(read_history(run_dir)),
        metric_rows=metric_rows(evaluation),
        match_iou=MATCH_IOU,
        precision_recall=charts.precision_recall_chart(evaluation),
        confusion=charts.confusion_chart(evaluation),
        few_classes=charts.FEW,
        error_rows=[[*row, ERROR_MEANINGS[row[0]]] for row in evaluation.error_rows()],
        abbreviations=", ".join(f"{short} {error_type}" for error_type, short in ABBREVIATIONS.items()),
        worst=[make_example(evaluation, record, inspectors.get(record.id)) for record in worst_records],
        best_images=[
            make_example(evaluation, record) for record in best_images(evaluation, data, worst_records)
        ],
        band=BAND,
        worst_masks=[draw_mask_pair(pair) for pair in worst_masks(evaluation, data, worst)],
        files={
            title: (run_dir / name).read_text(encoding="utf-8", errors="replace")
            for title, name in FILES.items()
            if (run_dir / name).is_file()
        },
    )
    path = run_dir / REPORT
    write_text(path, html)
    return path


def metric_rows(evaluation: Evaluation) -> list[list[str]]:
    """Return table rows: name, value for boxes, those for masks and their boundaries if there are masks, meaning."""
    masks = evaluation.masks
    columns = [evaluation.metrics, *([] if masks is None else [masks.metrics, masks.boundary_metrics])]
    return [
        [name, *(metric(column[name]) for column in columns), MEANINGS[name]] for name in evaluation.metrics
    ]


def unreadable_images(run_dir: Path, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return when and why images of a run could not be read, and were therefore left out."""
    path = run_dir / VALIDATION
    splits = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [
        *(
            (f"before the run ({name})", place)
            for name, split in splits.items()
            for finding in split["findings"]
            if finding["kind"] in UNREADABLE
            for place in finding["places"]
        ),
        *(("during the run", reason) for reason in read_record(run_dir).lost.values()),
        *(("in the evaluation", reason) for reason in evaluation.unreadable.values()),
    ]
