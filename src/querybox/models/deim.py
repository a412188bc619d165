"""DEIM (Huang et al. 2024): a training method for RT-DETRv2 and D-FINE, not a kind of its own.

Mosaics and mixed images have more objects, each of which is matched to a query, and the matchability-aware loss learns
from matches of any quality, so that fewer epochs are needed. docs/lineage/deim.md lists what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from querybox.models.public import PublicWeights

PLAIN_EPOCHS = 4
"""Epochs at the beginning without strong augmentation."""


@dataclass(frozen=True, slots=True)
class DEIM:
    """How one model is trained. Settings that are not listed here are those with which the parent is trained."""

    parent: str
    """Name of the recipe that is trained."""
    lr: float
    backbone_lr: float
    epochs: tuple[int, int, int]
    """All epochs; those after which mosaic and mixup end, and the learning rate begins to fall; and those after which
    all strong augmentation ends, and the learning rate has fallen to half."""
    weights: PublicWeights
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the model that differ from the parent's, besides those that differ in all models."""
    constant_lr: bool = False
    """Keep the learning rate after the warm-up."""
    ema_restart: float = 0.9999
    """Decay of the average after strong augmentation has ended."""
    norm_lr: float | None = None
    """Learning rate of the norms in the backbone; None for `backbone_lr`."""
    multi_scale: int | None = None
    """`DataSettings.multi_scale`; None for that of the parent."""

    @property
    def model(self) -> dict[str, Any]:
        """Settings that differ from the parent. All of the backbone is trained."""
        trained = {"frozen_stride": 0, "frozen_batch_norms": False}
        return {"matchability": True, "activation": "silu", **trained, **self.settings}

    @property
    def training(self) -> dict[str, Any]:
        """Settings that differ from the training of the parent."""
        epochs, flat, stop = self.epochs
        return {
            "epochs": epochs,
            "lr": self.lr,
            "backbone_lr": self.backbone_lr,
            "backbone_norm_lr": self.norm_lr,
            "schedule": "flat_cosine",
            "milestones": (epochs, epochs + 1) if self.constant_lr else (flat, stop),
            "warmup_steps": 2000,
            "ema_restart": self.ema_restart,
        }

    @property
    def data(self) -> dict[str, Any]:
        """Settings of the data that differ from those of the parent."""
        epochs, flat, stop = self.epochs
        return {
            **({} if self.multi_scale is None else {"multi_scale": self.multi_scale}),
            "mosaic": 0.5,
            "mixup": 0.5,
            "strong_from": PLAIN_EPOCHS / epochs,
            "strong_until": stop / epochs,
            "mosaic_until": flat / epochs,
        }


def rtdetrv2(
    size: str, backbone_lr: float, epochs: tuple[int, int, int], weights: PublicWeights, **settings: Any
) -> DEIM:
    """Return the training method for a model of RT-DETRv2."""
    settings = {"position_layers": 3, **settings}
    return DEIM(f"rtdetrv2_{size}", 2e-4, backbone_lr, epochs, weights, settings, norm_lr=2e-4, multi_scale=3)


def drive(file: str, AP: float, parameters: int, gflops: int) -> PublicWeights:
    """Return public weights in a file of Google Drive."""
    source = f"https://drive.google.com/file/d/{file}"
    return PublicWeights(source, AP, parameters, gflops, not_stated="activation='silu'")


LONG, SHORT = (120, 64, 117), (60, 34, 58)
THREE_LAYERS = {"decoder_layers": 3, "inference_layers": None}
N = drive("1ZPEhiU9nhW4M5jLnYOFwTSLQC1Ugf62e", 43.0, 4, 7)
S = drive("1tB8gVJNrfb6dhFvoHJECKOF5VpkthhfC", 49.0, 10, 25)
M = drive("18Lj2a6UN6k_n_UzqnJyiaiLGpDzQQit8", 52.7, 19, 57)
L = drive("1PIRf02XkrA2xAD3wEiKE2FaamZgSGTAr", 54.7, 31, 91)
X = drive("1dPtbgtGgq1Oa7k_LgH1GXPelg1IVeu0j", 56.5, 62, 202)
DEIM_RECIPES: dict[str, DEIM] = {
    f"deim_{each.parent}": each
    for each in (
        rtdetrv2("s", 2e-4, LONG, drive("153_JKff6EpFgiLKaqkJsoDcLal_0ux_F", 49.0, 20, 60)),
        rtdetrv2("ms", 1e-4, LONG, drive("1O9RjZF6kdFWGv1Etn1Toml4r-YfdMDMM", 50.9, 31, 92)),
        rtdetrv2("m", 2e-5, SHORT, drive("10dLuqdBZ6H5ip9BbBiE6S7ZcmHkRbD0E", 53.2, 33, 100), **THREE_LAYERS),
        rtdetrv2("l", 2e-5, SHORT, drive("1mWknAXD5JYknUQ94WCEvPfXz13jcNOTI", 54.3, 42, 136)),
        rtdetrv2("x", 2e-6, SHORT, drive("1BIevZijOcBO17llTyDX32F_pYppBfnzu", 55.5, 76, 259)),
        DEIM("dfine_n", 8e-4, 4e-4, (160, 78, 148), N, constant_lr=True),
        DEIM("dfine_s", 4e-4, 2e-4, (132, 64, 120), S, norm_lr=4e-4),
        DEIM("dfine_m", 4e-4, 4e-5, (102, 49, 90), M, norm_lr=4e-4),
        DEIM("dfine_l", 5e-4, 2.5e-5, (58, 29, 50), L),
        DEIM("dfine_x", 5e-4, 5e-6, (58, 29, 50), X, ema_restart=0.9998),
    )
}
"""Training methods by the names of their recipes."""
