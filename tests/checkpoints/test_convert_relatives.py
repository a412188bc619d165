"""Checkpoints of the relatives between the layouts: the very same tensors there and back."""

from __future__ import annotations

import logging
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import TARGETS, TINY, identical, random_state

from querybox.checkpoints import coco, native
from querybox.checkpoints.blueprint import Blueprint
from querybox.checkpoints.convert import System, convert
from querybox.checkpoints.read import read_checkpoint
from querybox.errors import CheckpointError, ConfigError
from querybox.models import DINO, DeformableDETR, Recipe
from querybox.models.layouts.layout import PublicSystem
from querybox.structures import Category, Preprocessing

SMALL: dict[str, Any] = {**TINY, "width": 32}
RELATIVES: dict[str, Recipe] = {
    "deformable": DeformableDETR(**SMALL, points=2),
    "refine": DeformableDETR(**SMALL, refine=True),
    "two-stage": DeformableDETR(**SMALL, refine=True, two_stage=True),
    "dino": DINO(**SMALL),
    "dino, own heads": DINO(**SMALL, strides=(4, 8, 16, 32), levels=5, share_heads=False),
}


def save_relative(path: Path, recipe: Recipe, classes: int = 80) -> Path:
    """Write random tensors in float16, of COCO's classes by id, or of others."""
    torch.manual_seed(0)
    categories = coco.CATEGORIES if classes == 80 else [Category(id=5, name="cell")] * classes
    recipe = recipe.replace(unused_rows=coco.UNUSED_ROWS) if classes == 80 else recipe
    blueprint = Blueprint(recipe=recipe, categories=tuple(categories), preprocessing=Preprocessing())
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in random_state(recipe, classes).items()
    }
    native.write(path, state, blueprint.card())
    return path


def without_card(path: Path) -> None:
    """Make a file of ours one that the system itself has written."""
    content = torch.load(path, weights_only=True)
    content["meta"].pop("querybox")
    torch.save(content, path)


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_there_and_back(name: str) -> None:
    ours = random_state(RELATIVES[name], 3, tiny_backbone=True)
    layouts = RELATIVES[name].layouts.values()
    assert len(layouts) == (2 if name.startswith("dino") else 3)
    for one, other in permutations(layouts, 2):
        file = one.to_theirs(ours)
        assert identical(one.to_ours(file), ours), one.name
        there = other.to_theirs(one.to_ours(file))
        assert identical(one.to_theirs(other.to_ours(there)), file), (one.name, other.name)


@pytest.mark.parametrize(
    ("name", "system"),
    [("two-stage", "facebook"), ("two-stage", "huggingface"), ("dino, own heads", "mmdet3")],
)
def test_a_file_of_a_relative_there_and_back(name: str, system: System, tmp_path: Path) -> None:
    source = save_relative(tmp_path / "ours.safetensors", RELATIVES[name])
    ours = read_checkpoint(source)
    target = tmp_path / TARGETS[system]
    convert(source, target, to=system)
    there = read_checkpoint(target)
    assert identical(there.state, ours.state)
    assert there.blueprint.recipe == ours.blueprint.recipe
    assert there.blueprint.categories == ours.blueprint.categories
    if system == "huggingface":
        return
    without_card(target)
    bare = read_checkpoint(target, heads=2)
    assert identical(bare.state, ours.state)
    wanted = ours.blueprint.recipe
    assert bare.blueprint.recipe == wanted.replace(queries=300 if name == "two-stage" else wanted.queries)
    assert bare.blueprint.categories == coco.CATEGORIES


def test_what_relatives_need_to_be_told_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    source = save_relative(tmp_path / "dino.safetensors", RELATIVES["dino"], classes=1)
    convert(source, tmp_path / "idea.pth", to="facebook")
    assert "its class head has 1 rows, but IDEA-Research's own config has 91" in caplog.text
    assert "set num_classes=1 and dn_labelbook_size=1 there" in caplog.text
    assert "bias" not in caplog.text
    convert(source, tmp_path / "mmdet.pth", to="mmdet3")
    assert "MMDetection 3.x's own config has none: set bias=True in neck there" in caplog.text
    caplog.clear()
    state = torch.load(tmp_path / "mmdet.pth", weights_only=True)
    for name in [name for name in state["state_dict"] if re.match(r"neck\..*conv\.bias", name)]:
        del state["state_dict"][name]
    torch.save(state, tmp_path / "theirs.pth")
    convert(tmp_path / "theirs.pth", tmp_path / "again.pth", to="mmdet3")
    assert "bias" not in caplog.text
    again = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    assert identical(again, state["state_dict"])


def test_rows_of_relatives_there_and_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "querybox")
    source = save_relative(tmp_path / "dino.safetensors", RELATIVES["dino"])
    convert(source, tmp_path / "80.pth", to="mmdet3", rows=80)
    assert "11 unused rows are dropped; each class keeps its logit\n" in caplog.text
    state = torch.load(tmp_path / "80.pth", weights_only=True)["state_dict"]
    assert {state[name].shape[0] for name in state if "cls_branches" in name or "label_emb" in name} == {80}
    convert(tmp_path / "80.pth", tmp_path / "91.pth", to="facebook", rows=91)
    model = torch.load(tmp_path / "91.pth", weights_only=True)["model"]
    assert (len(model["class_embed.0.weight"]), len(model["label_enc.weight"])) == (91, 92)
    convert(tmp_path / "91.pth", tmp_path / "80-again.pth", to="mmdet3", rows=80)
    again = read_checkpoint(tmp_path / "80-again.pth")
    assert identical(again.state, read_checkpoint(tmp_path / "80.pth").state)


@pytest.mark.parametrize(
    ("to", "recipe", "message"),
    [
        (
            "huggingface",
            DINO(**SMALL),
            "querybox does not know the names of DINO in huggingface; expected one of facebook",
        ),
        ("mmdet2", DINO(**SMALL), "expected one of facebook, mmdet3, querybox"),
        ("mmdet2", DeformableDETR(**SMALL), "querybox does not know the names of Deformable DETR in mmdet2"),
        (
            "facebook",
            DeformableDETR(**SMALL, strides=(16, 32)),
            r"has no Deformable DETR with strides=\(16, 32\)",
        ),
        ("mmdet3", DINO(**SMALL, distinct=True), "has no DINO with distinct=True"),
    ],
)
def test_relatives_that_another_system_does_not_have(
    tmp_path: Path, to: System, recipe: Recipe, message: str
) -> None:
    source = save_relative(tmp_path / "model.safetensors", recipe, classes=1)
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / f"new{Path(TARGETS[to]).suffix}", to=to)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("system", "name", "message"),
    [
        (
            "facebook",  # DINO of its authors with Swin
            "backbone.0.patch_embed.proj.weight",
            r"not a checkpoint of DINO .*: it has another backbone, with tensors such as "
            r"backbone\.0\.patch_embed\.proj\.weight; docs/guides/checkpoints\.md lists",
        ),
        (
            "mmdet3",
            "backbone.patch_embed.projection.weight",
            r"expected a ResNet-18, 34, .*, got tensors such as backbone\.body\.patch_embed\.projection\.weight",
        ),
    ],
)
def test_another_backbone_is_named(system: PublicSystem, name: str, message: str, tmp_path: Path) -> None:
    state = (
        RELATIVES["dino"].layouts[system].to_theirs(random_state(RELATIVES["dino"], 3, tiny_backbone=True))
    )
    others = {name: tensor for name, tensor in state.items() if not name.startswith("backbone.")}
    torch.save({name: torch.zeros(96, 3, 4, 4), **others}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "swin.pth")
