"""The recipes for few images: what they share, and the choices that can be switched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import PUBLIC

from querybox import Category, Detector, ImageBatch, QueryboxError, RunSettings, Target
from querybox.checkpoints.convert import convert
from querybox.fast.training import for_training
from querybox.models import find
from querybox.modules.queries import TokenQueries
from querybox.training.start import build_detector, resolve

PETS = tuple(Category(id=number, name=name) for number, name in enumerate(("cat", "dog", "ant")))


@pytest.mark.parametrize("recipe", ["rtdetr_small", "dfine_small"])
def test_small_recipes_take_images_as_dino_small_does(recipe: str) -> None:
    small, dino = find(recipe), find("dino_small")
    shared = ("backbone", "width", "feedforward", "decoder_layers", "heads", "levels", "queries", "distinct")
    assert all(getattr(small, name) == getattr(dino, name) for name in shared)
    assert small.criterion().matcher.class_cost == dino.criterion().matcher.class_cost == 6.0
    run = resolve(RunSettings.parse({"recipe": recipe, "data": {"train": "x", "image_size": 320}}))
    assert not run.data.stretch
    preprocessing = build_detector(
        run.replace(model={**run.model, "backbone_weights": None}), PETS
    ).preprocessing
    assert (preprocessing.resizing, preprocessing.short_side) == ("querybox", 320)
    assert (preprocessing.mean, preprocessing.std) == ((127.5,) * 3,) * 2  # of EfficientNet-Lite0


@pytest.mark.parametrize("recipe", ["rtdetr_small", "dfine_small"])
def test_a_step_of_training_reaches_every_weight(recipe: str) -> None:
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        recipe, categories=PETS, backbone="test_efficientnet", frozen_stride=0
    ).train()
    pixels = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    targets = [
        Target(boxes=torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]), labels=torch.tensor([0, 2]))
    ]
    output = for_training(detector)(ImageBatch.from_images([pixels], detector.preprocessing), targets)
    sum(detector.criterion()(output, targets).values()).backward()
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]


def test_dino_with_the_content_of_tokens(tmp_path: Path) -> None:
    detector = Detector.from_recipe("dino_small", categories=PETS, **PUBLIC, token_content=True)
    detector.save(tmp_path / "ours.safetensors")
    assert Detector.load(tmp_path / "ours.safetensors").recipe == detector.recipe
    assert isinstance(detector.queries, TokenQueries)
    assert detector.recipe is not None
    assert detector.recipe.rows_by_query == ()
    with pytest.raises(QueryboxError, match="token_content=True"):
        convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
