"""`querybox split`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from dataset_writers import Drawn, write_boxes, write_voc, write_yolo
from layouts import IMAGES

from querybox.cli.main import main
from querybox.data import read_dataset
from querybox.interrupt import SIGNALS


def test_split_writes_a_dataset_beside_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_boxes(tmp_path / "my boxes", (96, 64), sides=(16, 40))
    assert main(["split", str(file), "--test", "0.2"]) == 0
    told = capsys.readouterr().out
    assert "train: 4 images" in told or "train: 5 images" in told
    folder = tmp_path / "my boxes" / "boxes-split"
    assert f"querybox train '{folder}'" in told
    assert read_dataset(folder, "test").images


@pytest.mark.parametrize("number", [number for number in SIGNALS if number is not signal.SIGINT])
def test_a_command_that_is_asked_to_end_leaves_nothing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C: by default, these signals end Python at once."""
    file = write_boxes(tmp_path / "boxes", (96, 64), sides=(16, 40))
    monkeypatch.setattr("os.link", lambda *_: signal.raise_signal(number))
    with pytest.raises(SystemExit) as caught:
        main(["split", str(file), "--output", str(tmp_path / "new")])
    assert caught.value.code == 128 + number
    assert not list((tmp_path / "new").iterdir())


def test_the_split_to_divide_has_to_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = [("x", (1, 2, 11, 22))]
    images = [Drawn(name=f"{number}.png", size=(40, 30), objects=objects) for number in "abcde"]
    write_yolo(tmp_path / "two", "train", images, ["x"])
    write_yolo(tmp_path / "two", "test", [Drawn(name="f.png", size=(40, 30))], ["x"])
    (tmp_path / "two" / "data.yaml").unlink()
    (tmp_path / "two" / "classes.txt").write_text("x")
    assert main(["split", str(tmp_path / "two")]) == 2
    assert "has several splits (test, train); name the one to divide: --of train" in capsys.readouterr().err
    assert main(["split", str(tmp_path / "two"), "--of", "train"]) == 0


def test_what_a_split_does_not_keep_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "a", "all", IMAGES)
    file = tmp_path / "a" / "Annotations" / "a.xml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("<object>", "<object><difficult>1</difficult>", 1), encoding="utf-8")
    assert main(["split", str(tmp_path / "a")]) == 0
    assert "not written: that 1 object is marked as difficult" in capsys.readouterr().out
