"""Short names of public weights, wherever weights are taken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import PUBLIC

from querybox import Detector, RunSettings, load
from querybox.checkpoints.convert import convert
from querybox.checkpoints.find import find_public, is_model
from querybox.checkpoints.hub import NAME, Snapshot
from querybox.errors import CheckpointError
from querybox.models import KINDS, PUBLIC_WEIGHTS, RECIPES
from querybox.training.overrides import read_settings
from querybox.training.start import locate

CHECKPOINTS = Path(__file__).parents[2] / "docs" / "guides" / "checkpoints.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a small model."""
    path = tmp_path_factory.mktemp("model")
    Detector.from_recipe("detr_r18", num_classes=2, **PUBLIC).save(path / "ours.safetensors")
    convert(path / "ours.safetensors", path / "folder", to="huggingface")
    return path / "folder"


@pytest.fixture
def requested(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are requested from the Hub, which answers with the small model."""
    names: list[str] = []

    def fetch(name: str) -> Snapshot:
        names.append(str(name))
        return Snapshot(name=f"{name}@{'1' * 40}", folder=folder)

    for module in ("querybox.training.start", "querybox.checkpoints.find"):
        monkeypatch.setattr(f"{module}.fetch", fetch)
    monkeypatch.chdir(tmp_path)
    return names


def test_every_kind_states_its_weights() -> None:
    for kind in KINDS.values():
        assert kind.public_weights.items() <= PUBLIC_WEIGHTS.items()
    for name, weights in PUBLIC_WEIGHTS.items():
        assert weights.on_hub == (NAME.fullmatch(weights.source) is not None)
        assert weights.on_hub or weights.source.startswith("https://")
        assert ("-o365" in name) == ("Objects365, which has terms of its own" in weights.trained_on)
        assert 30 < weights.AP < 60
        recipe = RECIPES.get(name.removesuffix("-o365").replace("-", "_"))
        if recipe is not None and not name.startswith("deim"):  # single scale has none
            assert name in recipe.public_weights


def test_a_short_name_is_loaded_from_the_hub(requested: list[str]) -> None:
    assert isinstance(load("rtdetr-r18"), Detector)
    assert requested == ["hf://PekingU/rtdetr_r18vd"]


def test_a_run_starts_from_a_short_name(requested: list[str], tmp_path: Path) -> None:
    values: dict[str, Any] = {"weights": "rtdetr-r18", "data": {"train": "cells"}}
    assert locate(RunSettings.parse(values), resume=False).weights == f"hf://PekingU/rtdetr_r18vd@{'1' * 40}"
    (tmp_path / "elsewhere").mkdir()
    run_file = tmp_path / "elsewhere" / "run.yaml"
    run_file.write_text("{weights: rtdetr-r18, data: {train: cells}}")
    assert read_settings(run_file, {}, where="train").settings.weights == "rtdetr-r18"
    (run_file.parent / "rtdetr-r18").mkdir()
    assert read_settings(run_file, {}, where="train").settings.weights == str(run_file.parent / "rtdetr-r18")
    assert requested == ["hf://PekingU/rtdetr_r18vd"]


def test_a_file_or_folder_of_the_name_takes_precedence(
    requested: list[str], folder: Path, tmp_path: Path
) -> None:
    assert is_model(Path("detr-r50"))
    (tmp_path / "detr-r50").symlink_to(folder)
    assert isinstance(load("detr-r50"), Detector)
    (tmp_path / "detr-r101").mkdir()
    assert not is_model(Path("detr-r101"))
    with pytest.raises(CheckpointError, match="the folder holds neither"):
        load("detr-r101")
    assert requested == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtdetr-r19", "no such weights file; .*Did you mean the public weights 'rtdetr-r18'"),
        ("RTDETR-R18", "Did you mean the public weights 'rtdetr-r18'"),
        ("dino-r50", r"not on the Hugging Face Hub; download https://.*\.pth and pass the path of the file"),
        (
            "deim-dfine-s",
            r"download https://drive\.google\.com/.* instead of the name, with activation='silu'$",
        ),
        ("rtdetr-r18.pth", r"check the path$"),
    ],
)
def test_names_that_cannot_be_loaded(requested: list[str], name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(name)}: .*{message}"):
        load(name)
    assert requested == []


def test_what_is_known_of_a_name_on_the_hub() -> None:
    known = PUBLIC_WEIGHTS["rtdetr-r18-o365"]
    names = (
        "rtdetr-r18-o365",
        "hf://PekingU/rtdetr_r18vd_coco_o365",
        "hf://PekingU/rtdetr_r18vd_coco_o365@main",
    )
    for name in names:
        assert find_public(name) is known
        assert find_public(Path(name)) is known
    assert find_public("hf://someone/rtdetr_r18vd_coco_o365") is None


def test_the_guide_lists_all_of_them() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([\d.]+) \| (\d+) M \| (\d+) \| (\S+) \|$", CHECKPOINTS.read_text(), re.M
    )
    assert rows == [
        (name, str(each.AP), str(each.parameters), str(each.gflops), each.source)
        for name, each in PUBLIC_WEIGHTS.items()
        if each.PQ is None
    ]
    with_masks = re.findall(
        r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| (\d+) M \| (\S+) \|$",
        CHECKPOINTS.read_text(),
        re.M,
    )
    assert with_masks == [
        (name, str(each.AP), str(each.AP_masks), str(each.PQ), str(each.parameters), each.source)
        for name, each in PUBLIC_WEIGHTS.items()
        if each.PQ is not None
    ]
