"""A run that went well, as its record tells it; tests change what shall be wrong."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import yaml

from querybox.data import DataSettings
from querybox.diagnosis.facts import ClassFacts, EvaluationFacts, PartFacts, SplitFacts
from querybox.diagnosis.offset import Offset
from querybox.diagnosis.record import Record, add_to_record
from querybox.diagnosis.run import Plan, Run
from querybox.models import find
from querybox.training import RunSettings

SPLIT = SplitFacts(
    images=200,
    empty_images=10,
    objects={"cat": 600, "dog": 400},
    most_objects=20,
    lost_objects=0,
    repeated_objects=0,
    faulty_boxes=2,
    median_size=90.0,
)
CAT = ClassFacts(
    name="cat", objects=60, located=55, right=50, taken_for="dog", taken=5, tiny=3, tiny_located=2
)
DOG = dataclasses.replace(CAT, name="dog", objects=40, located=35, right=32, taken_for="cat", taken=3)
EVALUATION = EvaluationFacts(
    AP50=0.7,
    AP50_once=0.71,
    classes=(CAT, DOG),
    best_iou=0.75,
    near=0.97,
    top_score=0.9,
    confident=5.0,
    repeated=0.05,
    sameness=0.4,
)
RECORD = Record(
    training=SPLIT,
    validation=SPLIT,
    parts={
        name: PartFacts(parameters=1000, trained=900, weight_size=0.05)
        for name in ("backbone", "neck", "encoder", "queries", "decoder")
    },
    evaluation=EVALUATION,
    ended="epochs",
)
LOSSES = [20.0, 12.0, 9.0, 7.0, 6.0, 5.5, 5.2, 5.1, 5.05]
HISTORY = {
    "epoch": [float(epoch) for epoch in range(1, 10)],
    "step": [1000.0 * epoch for epoch in range(1, 10)],
    "loss": LOSSES,
    "loss_iou": [loss / 12 for loss in LOSSES],
    "seconds": [60.0 * epoch for epoch in range(1, 10)],
    "AP": [0.02, 0.06, 0.1, 0.14, 0.16, 0.17, 0.175, 0.18, 0.18],
    "AP50": [0.08, 0.24, 0.4, 0.56, 0.66, 0.7, 0.71, 0.72, 0.72],
}
FAILED = {"AP50": [0.001] * 9}
"""Columns of a run that found nothing, though its boxes fitted the training images."""

SHORT = {name: values[:3] for name, values in HISTORY.items()} | {
    "step": [4.0, 8.0, 12.0],
    "loss_iou": [4.0, 3.9, 3.8],
    "AP": [0.0] * 3,
    "AP50": [0.0] * 3,
}
"""Twelve steps, in which nothing could be learnt."""


def parts(**changes: Any) -> dict[str, Any]:
    assert RECORD.parts is not None
    return {
        name: dataclasses.replace(part, **changes.get(name, changes.get("all", {})))
        for name, part in RECORD.parts.items()
    }


def split(**changes: Any) -> Any:
    return dataclasses.replace(SPLIT, **changes)


def classes(**changes: Any) -> Any:
    return {"classes": tuple(dataclasses.replace(each, **changes) for each in (CAT, DOG))}


UNLOCATED = {
    "best_iou": 0.3,
    "other_iou": 0.2,
    **classes(located=2, right=2, taken=0, tiny=0, tiny_located=0),
}
"""Objects of an evaluation of which few are located."""
RESIZED: dict[str, Any] = {**UNLOCATED, "validation": split(median_size=50.0), "history": FAILED}
"""A run whose validation data have smaller objects, of which few are located."""
OFFSET = Offset(unit="pixel", shift=(20.0, 15.0), ratio=(1.0, 1.0), consistent=0.99, AP=0.6)
SHIFTED: dict[str, Any] = {**UNLOCATED, "AP": 0.1, "offset": OFFSET}
"""A run whose training boxes are shifted."""
MISSING: dict[str, Any] = {
    "validation": split(objects={"cat": 300, "dog": 80}),
    "background": 3.0,
    "covered": 0.8,
}
"""A run in whose validation data most objects are missing."""


def make_run(
    recipe: str = "detr_r50",
    *,
    model: dict[str, Any] | None = None,
    history: dict[str, list[float]] | None = None,
    fine_tuned: bool = False,
    image_size: int = 800,
    data: dict[str, Any] | None = None,
    **facts: Any,
) -> Run:
    """Make a run that differs from the good one.

    Words that the plan, the record or its evaluation have are theirs; `model` and `data` are settings, `history`
    columns of the metrics.
    """

    def take(kind: type[Any]) -> dict[str, Any]:
        return {each.name: facts.pop(each.name) for each in dataclasses.fields(kind) if each.name in facts}

    plan = {"lr": 1e-4, "backbone_lr": 1e-5, "epochs": 9, "warmup_steps": 0, **take(Plan)}
    record = dataclasses.replace(RECORD, **take(Record))
    if record.evaluation is not None:
        evaluation = dataclasses.replace(record.evaluation, **take(EvaluationFacts))
        record = dataclasses.replace(record, evaluation=evaluation)
    assert not facts
    return Run(
        plan=Plan(**plan),
        recipe=find(recipe).replace(**{"backbone_weights": "imagenet", **(model or {})}),
        fine_tuned=fine_tuned,
        data=DataSettings.parse({"image_size": image_size, **(data or {})}),
        history={**HISTORY, **(history or {})},
        record=record,
    )


def write_run(folder: Path) -> Path:
    """Write settings, metrics and record of the good run to `folder`, and return it."""
    model = find("detr_r50").replace(backbone_weights="imagenet").model_dump(mode="json")
    settings = RunSettings.parse({"recipe": "detr_r50", "model": model, "data": {"train": "data"}})
    (folder / "run.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HISTORY)
        writer.writerows(zip(*HISTORY.values(), strict=True))
    add_to_record(folder, **{each.name: getattr(RECORD, each.name) for each in dataclasses.fields(Record)})
    return folder
