"""The mistakes of newcomers in docs/guides/messages.md, and their messages."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from dataset_writers import write_boxes
from PIL import Image
from report_pages import without_charts
from tiny_models import TINY, TRAINABLE

import querybox
from querybox import Category, Detector

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "messages.md"
ROWS = re.findall(
    r"^\| [^|`]+ \| `querybox ([^`]+)` \| `([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the commands name."""
    folder = tmp_path_factory.mktemp("newcomer")
    photos = write_boxes(folder / "photos", (96, 64), sides=(16, 40))
    content = json.loads(photos.read_text())
    for name, changes in (
        ("unlabelled", {"annotations": []}),
        ("other", {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}),
    ):
        shutil.copytree(folder / "photos", folder / name)
        (folder / name / "boxes.json").write_text(json.dumps(content | changes))
    for split in ("train", "val"):
        shutil.copytree(folder / "photos", folder / "parts" / split)
    for name in ("photo.jpg", "images/a.jpg", "pets/cat/a.jpg", "pets/dog/a.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (96, 64)).save(folder / name)
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.write(photos, "photos/boxes.json")
    classes = [Category(id=1, name="red"), Category(id=2, name="blue")]
    Detector.from_recipe("detr_r18", categories=classes, **TINY).save(folder / "model.safetensors")
    (folder / "model.onnx").touch()
    options: dict[str, Any] = {
        "image_size": 32,
        "workers": 0,
        "epochs": 1,
        "output": folder / "runs" / "photos",
    }
    with without_charts():
        querybox.train(photos.parent, recipe="detr_r50", model=TRAINABLE, **options)
    return folder


@pytest.mark.parametrize(("command", "message"), ROWS, ids=[command for command, _ in ROWS])
def test_a_mistake_has_the_message_of_the_page(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ConnectionError

    monkeypatch.chdir(folder)
    monkeypatch.setattr("querybox.training.overrides.default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("querybox.checkpoints.hub.download", fail)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, out, err = run(*shlex.split(command))
    assert message in err
    if "had ended" not in message:
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_the_page_has_the_most_likely_mistakes() -> None:
    assert len(ROWS) == PAGE.read_text(encoding="utf-8").count("| `querybox ") >= 10
