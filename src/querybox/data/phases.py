"""How the images of a batch are augmented, which depends on how much of the run is done."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from querybox.data.settings import DataSettings

MIXUP_WEIGHTS = 0.45, 0.55
"""Range of the weight of an image in mixup, as in DEIM."""


class BatchAugmentation(NamedTuple):
    """The augmentation that the images of a batch have in common."""

    scale: int | None = None
    """Size of all images, one of `Sizes.scales`; None to choose one for each image."""
    strong: bool = True
    """Whether photometric distortion, zoom-out and IoU crop are applied, with their probabilities."""
    mosaic: bool = True
    """Whether mosaic and copy-paste are applied, with their probabilities."""
    mixup: float | None = None
    """Weight of each image, 0-1, which is mixed with another one; None for no mixup."""


class ActivePhases(NamedTuple):
    """The phases of augmentation at a moment of a run."""

    strong: bool
    """See `BatchAugmentation`, as for the following one."""
    mosaic: bool
    ended: bool
    """Whether strong augmentation and multi-scale batches have ended."""


def active_phases(settings: DataSettings, share: float) -> ActivePhases:
    """Return the phases of augmentation when this share of the run is done."""
    ended = share >= settings.strong_until < 1
    strong = share >= settings.strong_from and not ended
    mosaic = strong and (share < settings.mosaic_until or settings.mosaic_until == 1)
    return ActivePhases(strong=strong, mosaic=mosaic, ended=ended)


def describe_change(settings: DataSettings, before: float, now: float) -> str:
    """Return in one line that a resumed run changes the augmentation, because another share of it is done than before.

    It is empty if the phases are the same.
    """
    if active_phases(settings, before) == active_phases(settings, now):
        return ""
    return (
        f"the augmentation changes, because {now:.0%} of the run is done now, not {before:.0%} as when it stopped "
        "(data.strong_from, data.mosaic_until, data.strong_until)"
    )


class Phases:
    """Determines the augmentation of every batch of a run, from the seed and the share of the run that is done.

    Args:
        settings: Probabilities, sizes, and the shares of the run in which they apply.
        seed: Seed of the random numbers.
        epochs: Number of epochs of the run.

    Attributes:
        time_share: Share of the time limit that has passed, which may be ahead of the epochs.
    """

    def __init__(self, settings: DataSettings, seed: int, epochs: int) -> None:
        self.settings = settings
        self.seed = seed
        self.epochs = epochs
        self.time_share = 0.0
        sizes = settings.sizes()
        others = [scale for scale in sizes.scales if scale != settings.image_size]
        self.scales = [*others, *[settings.image_size] * settings.multi_scale]

    def batch(self, epoch: int, number: int, batches: int) -> BatchAugmentation:
        """Return the augmentation of a batch.

        Args:
            epoch: Index of the epoch.
            number: Index of the batch in the epoch.
            batches: Number of batches in an epoch.
        """
        settings = self.settings
        share = max((epoch * batches + number) / (self.epochs * batches), self.time_share)
        strong, mosaic, ended = active_phases(settings, share)
        rng = np.random.default_rng((self.seed, epoch, number, 1))
        scale = int(rng.choice(self.scales)) if settings.multi_scale else None
        mixed = mosaic and rng.random() < settings.mixup
        return BatchAugmentation(
            scale=settings.image_size if scale and ended else scale,
            strong=strong,
            mosaic=mosaic,
            mixup=float(rng.uniform(*MIXUP_WEIGHTS)) if mixed else None,
        )
