from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from querybox.checkpoints.read import read_checkpoint


@pytest.mark.parametrize(
    ("to", "target", "layout"),
    [
        ("facebook", "new/detr.pth", "facebookresearch"),
        ("mmdet2", "detr.pth", "MMDetection 2.x"),
        ("mmdet3", "detr.pth", "MMDetection 3.x"),
        ("huggingface", "detr", "Hugging Face"),
        ("querybox", "detr.safetensors", "querybox"),
    ],
)
def test_converts_to_every_system(run: Any, public_model: Path, to: str, target: str, layout: str) -> None:
    code, out, _ = run("convert", public_model, target, "--to", to)
    assert (code, out) == (0, f"Wrote {target}\n")
    checkpoint = read_checkpoint(target)
    assert checkpoint.layout == layout
    assert [category.name for category in checkpoint.blueprint.categories] == ["cat", "dog"]
    assert len(checkpoint.state) == len(read_checkpoint(public_model).state)


def test_converts_the_best_model_of_a_run(run: Any, public_model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").symlink_to(public_model)
    assert run("convert", "run", "detr.pth", "--to", "facebook")[0] == 0
    assert "detr.pth" in run("info", "detr.pth")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["missing.pth", "new.pth", "--to", "facebook"],
            "CheckpointError: missing.pth: no such weights file",
        ),
        (["MODEL", "MODEL", "--to", "querybox"], "exists already; choose another name"),
        (["MODEL", "new", "--to", "facebook"], "ConfigError: new: expected a .pth or .pt file for facebook"),
        (["MODEL", "new.pth", "--to", "mmdet3", "--rows", "80"], "rows=80 is for COCO's 80 classes"),
        (["MODEL", "new.pth", "--to", "mmdet3", "--heads", "4"], "got heads=4, but the file says 2"),
    ],
)
def test_bad_input_is_told_in_one_line(run: Any, public_model: Path, words: list[str], message: str) -> None:
    code, out, err = run("convert", *(public_model if word == "MODEL" else word for word in words))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
