"""What runs write down of themselves, and that those broken on purpose are told why they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from querybox.data import read_dataset
from querybox.detector import Detector
from querybox.diagnosis import Diagnosis, diagnose
from querybox.diagnosis.record import read_record
from querybox.errors import NonFiniteError
from querybox.interrupt import StopRequest
from querybox.runfile import read_run_file
from querybox.training import RunSettings, train
from querybox.training.loop import Trainer
from querybox.training.record import evaluate_and_record

MakeSettings = Callable[..., RunSettings]

DEFORMABLE = {"levels": 3, "frozen_stride": 0}
LEARNS = {
    "epochs": 50,
    "batch_size": 8,
    "lr": 2e-3,
    "backbone_lr": 2e-3,
    "clip": 1.0,
    "schedule": "cosine",
    "warmup_steps": 5,
    "evaluate_every": 50,
}
"""With `DEFORMABLE`, learns the eight images in seconds."""


@pytest.fixture
def broken_data(boxes_json: Path) -> Callable[[str], str]:
    """Write the dataset with a fault, and return its path."""

    def write(fault: str) -> str:
        content = json.loads(boxes_json.read_text())
        annotations, categories = content["annotations"], content["categories"]
        if fault == "swapped classes":
            categories[0]["name"], categories[1]["name"] = categories[1]["name"], categories[0]["name"]
        elif fault == "corners for sides":
            for each in annotations:
                x, y, w, h = each["bbox"]
                each["bbox"] = [x, y, x + w, y + h]
        else:
            first, last = {"first two": (1, 2), "others": (3, 8)}[fault]
            content["images"] = [each for each in content["images"] if first <= each["id"] <= last]
            content["annotations"] = [each for each in annotations if first <= each["image_id"] <= last]
        path = boxes_json.with_name(f"{fault}.json")
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def diagnosed(
    run_settings: MakeSettings,
    boxes_json: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_shape_checks: None,
) -> Callable[..., Diagnosis]:
    """Train, evaluating on the training images unless `data` say otherwise, and diagnose."""
    monkeypatch.setattr("querybox.training.run.write_report", lambda folder, *_: folder)  # it takes a second

    def run(recipe: str = "detr_r50", *, data: dict[str, Any] | None = None, **settings: Any) -> Diagnosis:
        plain = {"scales": [64], "crop": 0.0, "horizontal_flip": 0.0, "cache": True, "val": str(boxes_json)}
        made = run_settings(data={**plain, **(data or {})}, **settings).model_dump()
        return diagnose(train(RunSettings.parse({**made, "recipe": recipe})).run_dir)

    return run


Diagnosed = Callable[..., Diagnosis]
Broken = Callable[[str], str]


def names(diagnosis: Diagnosis) -> list[str]:
    return [finding.name for finding in diagnosis.findings]


def test_a_run_that_learns_is_accused_only_if_classes_are_mixed_up(
    diagnosed: Diagnosed, broken_data: Broken
) -> None:
    diagnosis = diagnosed("deformable_detr_small", model=DEFORMABLE, **LEARNS)
    assert diagnosis.AP50 is not None
    assert diagnosis.AP50 > 0.5
    assert names(diagnosis) == []
    assert diagnosis.missing == ()
    assert diagnosis.ended == "epochs"

    folder = Path(diagnosis.run)
    settings = RunSettings.parse(read_run_file(folder / "run.yaml"))
    mixed_up = read_dataset(broken_data("swapped classes"))
    detector = Detector.load(folder / "best.safetensors")
    evaluate_and_record(Accelerator(), settings, mixed_up, detector, StopRequest())
    assert names(diagnose(folder))[0] == "mixed_up_labels"


def test_corners_for_sides(diagnosed: Diagnosed, broken_data: Broken) -> None:
    data = {"train": broken_data("corners for sides")}
    settings = {**LEARNS, "epochs": 15}
    assert (
        names(diagnosed("deformable_detr_small", model=DEFORMABLE, data=data, **settings))[0]
        == "faulty_boxes"
    )


def test_two_images_learnt_by_heart(diagnosed: Diagnosed, broken_data: Broken) -> None:
    data = {"train": broken_data("first two"), "val": broken_data("others")}
    diagnosis = diagnosed("deformable_detr_small", model=DEFORMABLE, data=data, **LEARNS)
    assert names(diagnosis)[0] == "overfitting"


def test_more_queries_than_a_softmax_bears(diagnosed: Diagnosed) -> None:
    settings = {"epochs": 20, "batch_size": 8, "evaluate_every": 20}
    diagnosis = diagnosed(
        model={"queries": 150, "decoder_layers": 2, "dropout": 0.0, "frozen_stride": 0}, **settings
    )
    assert names(diagnosis)[0] == "no_object_collapse"
    assert diagnosis.findings[0].evidence["queries"] == 150


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"lr": 1.0}, "lr_too_high"),
        ({"lr": 1e-7}, "lr_too_low"),
        ({"freeze": ["decoder"]}, "frozen_parts"),
        ({"recipe": "dino_small", "model": {**DEFORMABLE, "denoising": 5}}, "too_few_steps"),
    ],
)
def test_faults_of_the_schedule(diagnosed: Diagnosed, settings: dict[str, Any], name: str) -> None:
    assert names(diagnosed(**{"epochs": 3, "batch_size": 8, "evaluate_every": 3, **settings}))[0] == name


def test_an_error_that_ends_a_run_is_recorded(
    run_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, *_: Any) -> None:
        raise NonFiniteError("loss_cls became NaN")

    settings = run_settings()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", fail)
        with pytest.raises(NonFiniteError):
            train(settings)
    diagnosis = diagnose(settings.folder)
    assert names(diagnosis)[0] == "failed"
    assert "loss_cls became NaN" in diagnosis.findings[0].cause
    assert diagnosis.missing[0].startswith("metrics.csv has no row")

    folder = train(settings, resume=True).run_dir
    record = read_record(folder)
    assert (record.ended, record.failed) == ("epochs", False)


def test_a_resumed_run_keeps_what_it_began_with(run_settings: MakeSettings, trained: Path) -> None:
    before = read_record(trained)
    after = read_record(train(run_settings(epochs=2), resume=True).run_dir)
    assert before.parts is not None
    assert after == before
