from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from querybox.detector import Detector
from querybox.structures import Category, ImageBatch, Preprocessing, Target

# Hostile, as data can be: markup, and the end of the script that the page keeps its data in.
CATEGORIES = (Category(id=3, name="cat"), Category(id=9, name="</script><b>dog"), Category(id=4, name="細胞"))
TINY = {"width": 32, "heads": 4, "feedforward": 32, "encoder_layers": 2, "decoder_layers": 3, "queries": 8}
LOOK = Preprocessing(short_side=64, long_side=96)


@torch.no_grad()
def make(recipe: str, **settings: Any) -> Detector:
    """A detector whose attention is as uneven as that of a trained one, with dropout that must not matter."""
    torch.manual_seed(0)
    detector = Detector.from_recipe(
        recipe, categories=CATEGORIES, backbone="test_resnet", **{**TINY, "dropout": 0.1, **settings}
    )
    for name, part in detector.named_modules():
        if isinstance(part, nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.4 if "attention" in name else 0.2)
    detector.preprocessing = LOOK
    return detector


@pytest.fixture(scope="session")
def detr() -> Detector:
    return make("detr_r50")


RELATIVES: dict[str, Callable[[], Detector]] = {
    "deformable": lambda: make("deformable_detr_r50"),
    "two-stage": lambda: make("deformable_detr_r50_two_stage"),
    "dino": lambda: make("dino_r50", denoising=4),
}


@pytest.fixture(scope="session", params=RELATIVES)
def relative(request: pytest.FixtureRequest) -> Detector:
    return RELATIVES[request.param]()


@pytest.fixture(scope="session")
def with_masks() -> Detector:
    return make("dino_r50", denoising=4, masks=True)


@pytest.fixture(scope="session")
def with_attention_masks() -> Detector:
    return make("detr_r50", masks="attention", width=128, heads=8)


@pytest.fixture(scope="session")
def padded() -> ImageBatch:
    """One image of 64 x 64 pixels, padded to 96 x 128; at stride 32 that is 2 x 2 of 3 x 4 cells."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 96, 128), generator=generator, dtype=torch.uint8)
    return ImageBatch.from_pixels(pixels, torch.tensor([[64, 64]]), LOOK)


@pytest.fixture(scope="session")
def target() -> Target:
    return Target(
        boxes=torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.2, 0.3, 0.1, 0.2]]), labels=torch.tensor([2, 0])
    )
