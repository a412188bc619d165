"""`querybox split`."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_writers import write_boxes

from querybox.cli.main import main
from querybox.data import read_dataset


def test_split_writes_a_dataset_beside_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))
    assert main(["split", str(file), "--test", "0.2"]) == 0
    told = capsys.readouterr().out
    assert "train: 4 images" in told or "train: 5 images" in told
    assert f"querybox train {tmp_path / 'boxes' / 'boxes-split'}" in told
    assert read_dataset(tmp_path / "boxes" / "boxes-split", "test").images
