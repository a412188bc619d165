"""Runs of detectors with masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import Crash, crash_in, rows, same, weights

from querybox.training import RunSettings, loop, train
from querybox.training.loop import Trainer


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
