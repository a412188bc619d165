from __future__ import annotations

import re
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

import querybox
from querybox.checkpoints.hub import Snapshot
from querybox.models import RECIPES


def test_without_a_target_says_what_is_installed(run: Any) -> None:
    code, out, err = run("info")
    assert (code, err) == (0, "")
    assert querybox.__version__ in out
    assert torch.__version__.split("+")[0] in out
    assert all(name in out for name in RECIPES)
    assert "stride=16, dilation=True" in out
    assert "kind=dino" in out
    assert any(
        line.replace("│", "").split()
        == ["deformable_detr_r50_refine", "deformable_detr_r50", "with", "refine=True"]
        for line in out.splitlines()
    )


def test_recipes_are_listed_by_purpose(run: Any) -> None:
    words = [line.replace("│", "").split() for line in run("info")[1].splitlines()]
    order = [line[0] if line[0] in RECIPES else " ".join(line) for line in words if line]
    start = order.index("Recipes for few images, or a CPU")
    assert [line for line in order[start:] if line in RECIPES or line.startswith("Recipes")] == [
        "Recipes for few images, or a CPU", "detr_small", "deformable_detr_small", "dino_small", "rtdetr_small",
        "dfine_small",
        "Recipes for real-time detection, trained with a GPU", "rtdetr_r18", "rtdetr_r34", "rtdetr_r50_m",
        "rtdetrv2_s", "rtdetrv2_ms", "rtdetrv2_m", "dfine_n", "dfine_s", "dfine_m",
        "deim_rtdetrv2_s", "deim_rtdetrv2_ms", "deim_rtdetrv2_m",
        "deim_dfine_n", "deim_dfine_s", "deim_dfine_m",
        "Recipes for the highest AP on COCO, with a GPU", "dino_r50", "rtdetr_r50", "rtdetr_r101",
        "rtdetrv2_l", "rtdetrv2_x", "dfine_l", "dfine_x", "deim_rtdetrv2_l", "deim_rtdetrv2_x",
        "deim_dfine_l", "deim_dfine_x",
        "Recipes for reproducing papers",
        *(
            name
            for name in RECIPES
            if not name.endswith("small") and not name.startswith(("dino", "rtdetr", "dfine", "deim"))
        ),
    ]  # fmt: skip


def test_of_a_model(run: Any, model: Path, tmp_path: Path) -> None:
    code, out, _ = run("info", model)
    assert code == 0
    for part in (
        "0.38 M",
        "2: cat, dog",
        "short side 32, long side at most 64 pixels",
        "123.675",
        "queries=8",
    ):
        assert part in out
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").symlink_to(model)
    assert "2: cat, dog" in run("info", "run")[1]


def test_of_public_weights(run: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = run("info", "--models")
    assert re.search(r"^Trained on COCO. Licence: Apache-2.0$", out, re.M)
    assert re.search(r"^ +rtdetr-r18 +46.5 +20 M +60  hf://PekingU/rtdetr_r18vd$", out, re.M)
    assert "a multiplication and an addition as two" in out
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model.safetensors").symlink_to(model)
    snapshot = Snapshot(name="hf://PekingU/rtdetr_r18vd_coco_o365@1", folder=tmp_path / "hub")
    monkeypatch.setattr("querybox.checkpoints.find.fetch", lambda _: snapshot)
    for name in ("rtdetr-r18-o365", "hf://PekingU/rtdetr_r18vd_coco_o365"):
        words = " ".join(run("info", name)[1].replace("│", "").split())
        assert "licence Apache-2.0 trained on Objects365, which has terms of its own, then COCO" in words


def test_of_a_dataset(run: Any, photos: Path) -> None:
    code, out, err = run("info", photos)
    assert code == 0
    assert "boxes without width or height (1: " in err
    rows = [
        [cell.strip() for cell in line.strip("│ \n").split("│")] for line in out.splitlines() if "│" in line
    ]
    assert ["train", "4", "0", "4", "0", "1 zero_size_box"] in rows
    assert ["val", "2", "0", "2", "0", "none"] in rows
    assert ["3", "cat", "2", "1"] in rows
    assert ["9", "dog", "2", "1"] in rows

    _, out, err = run("info", photos, "--split", "val")
    assert err == ""
    assert "train" not in out.replace(str(photos), "")


def test_a_dataset_or_a_split_with_missing_images_is_described(
    run: Any, photos: Path, tmp_path: Path
) -> None:
    copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "images" / "val2.jpg").unlink()
    for words in ((), ("--split", "val")):
        code, out, _ = run("info", tmp_path / "photos", *words)
        assert (code, "val" in out) == (0, True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing", "DataError: missing: no such file or folder"),
        ("missing.safetensors", "CheckpointError: missing.safetensors: no such weights file"),
        ("missing.ckpt", "CheckpointError: missing.ckpt: no such weights file"),
        ("missing.pth.tar", "CheckpointError: missing.pth.tar: no such weights file"),
        (".", "DataError: .: contains no dataset"),
        ("dfin-s", "the folder of a run: check the path. Did you mean the public weights 'dfine-s'?"),
    ],
)
def test_bad_input_is_told_in_one_line(run: Any, target: str, message: str) -> None:
    code, out, err = run("info", target)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
