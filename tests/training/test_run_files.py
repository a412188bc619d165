"""Runs are repeated from the `run.yaml` of earlier versions.

The files in `run_files` are as versions of that time wrote them, except for paths: that of the dataset, and `output`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from querybox.runfile import read_run_file
from querybox.training import RunSettings, train
from querybox.training.overrides import read_settings
from querybox.training.run import prepare
from querybox.training.start import locate

FOLDER = Path(__file__).parent / "run_files"
NO_EVALUATION = ["train.evaluate_every", "train.patience"]
FROZEN = ["data.crop_scales", "model.frozen_stride", "train.backbone_lr", "train.milestones"]
WITHOUT_EFFECT = {
    "2026-11-25-1727-deformable": [],
    "2026-11-25-1727-frozen": FROZEN,
    "2026-11-27-2040-auto": NO_EVALUATION,
    "2026-11-27-2040-detr": NO_EVALUATION,
    "2026-11-28-0015-rtdetr": [],
    "2026-11-28-0235-deim": [],
    "2026-11-28-1314-auto": NO_EVALUATION,
    "2026-11-28-1314-deformable": ["data.overlap"],
}
"""Names of settings that have no effect, by file."""
PLACES = {"data.train", "output"}


def test_all_files_are_tested() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(WITHOUT_EFFECT)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_run_of_an_earlier_version_is_repeated(
    name: str, boxes_json: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = FOLDER / f"{name}.yaml"
    moved = {"data.train": boxes_json, "output": tmp_path / "again"}
    given = read_settings(file, moved, where="train")
    given = dataclasses.replace(given, settings=locate(given.settings, resume=False))
    repeated = prepare(given, resume=False)[0].flat()
    written = RunSettings.parse(read_run_file(file)).flat(set_only=True)
    assert {key: repeated[key] for key in written if key not in PLACES} == {
        key: value for key, value in written.items() if key not in PLACES
    }
    warned = [
        line.partition(" has no effect")[0] for line in caplog.messages if line.startswith("run file: ")
    ]
    assert re.findall(r"\w+\.\w+", " ".join(warned)) == WITHOUT_EFFECT[name]


def test_it_is_trained(boxes_json: Path, tmp_path: Path) -> None:
    file = FOLDER / "2026-11-27-2040-detr.yaml"
    moved: dict[str, Any] = {"data.train": boxes_json}
    result = train(file, epochs=1, output=tmp_path / "again", **moved)
    assert read_run_file(result.run_dir / "run.yaml")["train"]["patience"] == 3
