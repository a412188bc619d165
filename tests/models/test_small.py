"""The recipes for few images: what they share, and the choices that can be switched."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import PUBLIC

from querybox import Category, Detector, QueryboxError, RunSettings
from querybox.checkpoints.convert import convert
from querybox.models import find
from querybox.modules.queries import TokenQueries
from querybox.training.start import build_detector, resolve

PETS = tuple(Category(id=number, name=name) for number, name in enumerate(("cat", "dog", "ant")))


def test_the_small_recipe_takes_images_as_dino_small_does() -> None:
    small, dino = find("rtdetr_small"), find("dino_small")
    shared = ("backbone", "width", "feedforward", "decoder_layers", "heads", "levels", "queries", "distinct")
    assert all(getattr(small, name) == getattr(dino, name) for name in shared)
    assert small.criterion().matcher.class_cost == dino.criterion().matcher.class_cost == 6.0
    run = resolve(RunSettings.parse({"recipe": "rtdetr_small", "data": {"train": "x", "image_size": 320}}))
    assert not run.data.stretch
    preprocessing = build_detector(
        run.replace(model={**run.model, "backbone_weights": None}), PETS
    ).preprocessing
    assert (preprocessing.resizing, preprocessing.short_side) == ("querybox", 320)
    assert (preprocessing.mean, preprocessing.std) == ((127.5,) * 3,) * 2  # of EfficientNet-Lite0


def test_dino_with_the_content_of_tokens(tmp_path: Path) -> None:
    detector = Detector.from_recipe("dino_small", categories=PETS, **PUBLIC, token_content=True)
    detector.save(tmp_path / "ours.safetensors")
    assert Detector.load(tmp_path / "ours.safetensors").recipe == detector.recipe
    assert isinstance(detector.queries, TokenQueries)
    assert detector.recipe is not None
    assert detector.recipe.rows_by_query == ()
    with pytest.raises(QueryboxError, match="token_content=True"):
        convert(tmp_path / "ours.safetensors", tmp_path / "theirs.pth", to="facebook")
