"""Small models of RT-DETR and its relatives, whose weights and statistics are not those of new ones."""

from __future__ import annotations

import re
from typing import Any

import torch
from batch_norms import randomize_batch_norms
from tiny_models import HYBRID

from querybox import Category, Detector, ImageBatch
from querybox.models.layouts.rtdetr import PREPROCESSING

PETS = tuple(Category(id=number, name=name) for number, name in enumerate(("cat", "dog", "ant")))
INITIALLY_ZERO = re.compile(r"box_heads?\.(\d+\.)?4\.weight|first_box\.4|quality\.\d+\.layers\.2|gate")


def make(recipe: str, categories: tuple[Category, ...] = PETS, **settings: Any) -> Detector:
    torch.manual_seed(0)
    detector = Detector.from_recipe(recipe, categories=categories, **{**HYBRID, **settings})
    randomize_batch_norms(detector)
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if INITIALLY_ZERO.search(name):
                parameter.normal_(0, 0.1)
    return detector.eval()


def square(count: int = 2, side: int = 64, seed: int = 0) -> ImageBatch:
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(256, (3, side, side), dtype=torch.uint8, generator=generator) for _ in range(count)
    ]
    return ImageBatch.from_images(images, PREPROCESSING)
