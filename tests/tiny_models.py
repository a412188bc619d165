"""Settings of models that are built, run and trained in moments, for tests and torture alike."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "width": 32,
    "heads": 4,
    "feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 10,
}
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
