"""Models that are built, run and trained in moments, for tests and torture alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from querybox.detector import Detector
from querybox.structures import Category, Preprocessing

TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "width": 32,
    "heads": 4,
    "feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 10,
}
SMALLEST: dict[str, Any] = {**TINY, "width": 16, "heads": 2, "feedforward": 32, "queries": 8}
"""Half as wide, for what is loaded many times."""
PUBLIC: dict[str, Any] = {**TINY, "backbone": "resnet18.tv_in1k"}
"""With a backbone that the public layouts know."""
TRAINABLE: dict[str, Any] = {**TINY, "backbone": "test_efficientnet", "backbone_weights": None}
"""With the backbone whose training steps are the shortest."""
SEGMENTATION: dict[str, Any] = {**PUBLIC, "width": 128, "heads": 8, "masks": "attention"}
"""With DETR's own mask head, whose smallest width this is."""
HYBRID: dict[str, Any] = {
    "width": 32,
    "encoder_width": 16,
    "heads": 4,
    "feedforward": 24,
    "encoder_feedforward": 20,
    "decoder_layers": 2,
    "queries": 7,
}
"""For RT-DETR and its relatives, with an encoder that is narrower than the decoder."""
CATS_AND_DOGS = (Category(id=3, name="cat"), Category(id=9, name="dog"))


def save_detector(file: Path, short_side: int, long_side: int, **settings: Any) -> Path:
    """Save a DETR with random weights that knows `CATS_AND_DOGS`, with `SMALLEST` and other settings of its recipe."""
    torch.manual_seed(0)
    detector = Detector.from_recipe("detr_r18", **{"categories": CATS_AND_DOGS, **SMALLEST, **settings})
    detector.preprocessing = Preprocessing(short_side=short_side, long_side=long_side)
    detector.save(file)
    return file
