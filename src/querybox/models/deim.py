"""DEIM (Huang et al. 2025): a training of RT-DETRv2 and D-FINE, not a kind of its own.

Mosaics and mixed images have more objects, each of which is matched to a query, and the matchability-aware loss learns
from matches of any quality, so that fewer epochs are needed. docs/lineage/deim.md lists what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from querybox.models.public import PublicWeights

PLAIN_EPOCHS = 4
"""Epochs at the beginning without strong augmentation."""
DRIVE = "https://drive.google.com/file/d/"


@dataclass(frozen=True, slots=True, kw_only=True)
class DEIM:
    """The training of one model."""

    recipe: str
    """Name of the recipe that is trained."""
    model: Mapping[str, Any]
    """Settings of the model that differ."""
    lr: float
    backbone_lr: float
    epochs: int
    flat: int
    """Epochs after which mosaic and mixup end, and the learning rate begins to fall."""
    stop: int
    """Epochs after which all strong augmentation ends, and the learning rate has fallen to half."""
    multi_scale: int
    """How often batches have the image size itself; see `DataSettings.multi_scale`."""
    ema_warmup: int
    more: Mapping[str, Any]
    """Other settings of the training."""
    weights: PublicWeights
    """The public weights, which are files of Google Drive."""

    @property
    def training(self) -> dict[str, Any]:
        """Settings that differ from the defaults of `querybox.training.TrainSettings`."""
        return {
            "epochs": self.epochs,
            "lr": self.lr,
            "backbone_lr": self.backbone_lr,
            "decay_norms": False,
            "schedule": "flat_cosine",
            "milestones": (self.flat, self.stop),
            "warmup_steps": 2000,
            "ema": 0.9999,
            "ema_warmup": self.ema_warmup,
            **self.more,
        }

    @property
    def data(self) -> dict[str, Any]:
        """Settings that differ from the defaults of `querybox.data.DataSettings`."""
        return {
            "image_size": 640,
            "stretch": True,
            "crop": 0.0,
            "photometric": 0.5,
            "zoom_out": 0.5,
            "iou_crop": 0.8,
            "mosaic": 0.5,
            "mixup": 0.5,
            "multi_scale": self.multi_scale,
            "strong_from": PLAIN_EPOCHS / self.epochs,
            "strong_until": self.stop / self.epochs,
            "mosaic_until": self.flat / self.epochs,
        }


TRAINED: dict[str, Any] = {
    "matchability": True,
    "activation": "silu",
    "frozen_stride": 0,
    "frozen_batch_norms": False,
}
"""Settings of all models: besides the loss and the activation, all of the backbone is trained."""
RTDETRV2 = {**TRAINED, "position_layers": 3}


def rtdetrv2(
    size: str,
    backbone_lr: float,
    epochs: tuple[int, int, int],
    *,
    multi_scale: int = 3,
    weights: PublicWeights,
    **model: Any,
) -> DEIM:
    """Return the training of a model of RT-DETRv2; `epochs` are all, `DEIM.flat` and `DEIM.stop`."""
    return DEIM(
        recipe=f"rtdetrv2_{size}",
        model={**RTDETRV2, **model},
        lr=2e-4,
        backbone_lr=backbone_lr,
        epochs=epochs[0],
        flat=epochs[1],
        stop=epochs[2],
        multi_scale=multi_scale,
        ema_warmup=2000,
        more={},
        weights=weights,
    )


LONG, SHORT = (120, 64, 117), (60, 34, 58)
DEIM_RECIPES: dict[str, DEIM] = {
    "deim_rtdetrv2_s": rtdetrv2(
        "s",
        2e-4,
        LONG,
        multi_scale=0,
        weights=PublicWeights(f"{DRIVE}153_JKff6EpFgiLKaqkJsoDcLal_0ux_F", 49.0, 20, 60),
    ),
    "deim_rtdetrv2_ms": rtdetrv2(
        "ms", 1e-4, LONG, weights=PublicWeights(f"{DRIVE}1O9RjZF6kdFWGv1Etn1Toml4r-YfdMDMM", 50.9, 31, 92)
    ),
    "deim_rtdetrv2_m": rtdetrv2(
        "m",
        2e-5,
        SHORT,
        decoder_layers=3,
        inference_layers=None,
        weights=PublicWeights(f"{DRIVE}10dLuqdBZ6H5ip9BbBiE6S7ZcmHkRbD0E", 53.2, 33, 100),
    ),
    "deim_rtdetrv2_l": rtdetrv2(
        "l", 2e-5, SHORT, weights=PublicWeights(f"{DRIVE}1mWknAXD5JYknUQ94WCEvPfXz13jcNOTI", 54.3, 42, 136)
    ),
    "deim_rtdetrv2_x": rtdetrv2(
        "x", 2e-6, SHORT, weights=PublicWeights(f"{DRIVE}1BIevZijOcBO17llTyDX32F_pYppBfnzu", 55.5, 76, 259)
    ),
}
"""Trainings by the names of their recipes."""
