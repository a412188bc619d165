"""Runs of detectors with masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import Crash, crash_in, rows, same, weights
from tiny_models import SMALLEST

from querybox import Detector
from querybox.errors import ConfigError
from querybox.training import RunSettings, loop, train
from querybox.training.loop import Trainer
from querybox.training.run import prepare
from querybox.training.settings import Given


@pytest.fixture
def masked(boxes_json: Path, tmp_path: Path) -> Path:
    """The tiny dataset with a triangle as the mask of each object."""
    folder = shutil.copytree(boxes_json.parent, tmp_path / "masked")
    path = folder / boxes_json.name
    content = json.loads(path.read_text(encoding="utf-8"))
    for each in content["annotations"]:
        x, y, width, height = each["bbox"]
        each["segmentation"] = [[x, y, x + width, y, x, y + height]]
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_masks_are_trained_and_a_resumed_run_has_the_same_weights(
    run_settings: Callable[..., RunSettings], masked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MIN_CHECKPOINT_SECONDS", 0.0)

    def settings(output: str) -> RunSettings:
        return run_settings(output, model={"masks": True}, data={"train": str(masked)})

    whole = train(settings("whole")).run_dir
    assert all(float(row["loss_mask"]) > 0 and float(row["loss_dice"]) > 0 for row in rows(whole))
    with monkeypatch.context() as patch:
        crash_in(patch, Trainer, "end_epoch", 2)
        with pytest.raises(Crash):
            train(settings("parts"))
    parts = train(settings("parts"), resume=True).run_dir
    same(parts, whole, "checkpoint", "last")
    assert any(name.startswith("model.mask_head") for name in weights(whole))


def test_masks_that_no_object_has_are_not_trained(
    run_settings: Callable[..., RunSettings], masked: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = run_settings("run", model={"masks": True})
    with pytest.raises(
        ConfigError, match=r"setting 'model.masks' is true, but .* has no masks; expected a dataset"
    ):
        prepare(Given(settings=asked), resume=False)
    detector = Detector.from_recipe("detr_r18", num_classes=2, **SMALLEST, masks=True)
    detector.save(weights_file := masked.parent / "masked.safetensors")
    values = asked.model_dump(exclude_unset=True, exclude={"recipe", "model"})
    tuned = RunSettings.parse({**values, "weights": str(weights_file)})
    prepare(Given(settings=tuned), resume=False)
    assert "has no masks, so the mask head is not trained" in caplog.text
    caplog.clear()
    prepare(Given(settings=tuned.replace(model={"masks": False})), resume=False)
    prepare(Given(settings=tuned.replace(data={"train": str(masked)})), resume=False)
    assert "has no masks" not in caplog.text
