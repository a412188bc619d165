"""The detector and its criterion as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from querybox.data import Batch
from querybox.errors import ConfigError
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch, Target
from querybox.text import listed

SINGLE_VALUE = "Expected more than 1 value per channel"
"""Beginning of PyTorch's error for a batch or group norm that has a single value to normalise."""


class DetectionLoss(nn.Module):
    """Computes the losses of a detector.

    accelerate wraps this module, not the detector, for mixed precision and distributed training, so that the detector
    itself can be evaluated and saved.
    """

    def __init__(self, detector: DetectionTransformer, criterion: nn.Module) -> None:
        """Combine the two.

        Raises:
            ConfigError: The criterion has parameters to train.
        """
        super().__init__()
        if trained := [name for name, each in criterion.named_parameters() if each.requires_grad]:
            raise ConfigError(
                f"the criterion has parameters to train ({listed(trained)}), which a run neither updates nor saves; "
                "expected none: criterion.requires_grad_(False), or train with a loop of your own"
            )
        self.detector = detector
        self.criterion = criterion

    def forward(
        self,
        batch: ImageBatch,
        targets: Sequence[Target],
        *,
        object_counts: Sequence[int] | None = None,
        placeholder: bool = False,
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name.

        Args:
            batch: The images.
            targets: The objects of each image.
            object_counts: Number of objects of each image of the update, if `batch` is only a part of it: the losses of
                all parts add up to those of the whole.
            placeholder: Whether the batch is a placeholder, whose losses and gradients are 0.

        Raises:
            ConfigError: The images are so small that a feature map has a single cell, which cannot be normalised.
        """
        # Not passed on if there are none, for detectors with a forward method of their own.
        counts = () if object_counts is None else (object_counts,)
        try:
            output = self.detector(batch, targets, *counts)
        except ValueError as error:
            if not str(error).startswith(SINGLE_VALUE):
                raise
            height, width = batch.images.shape[-2:]
            raise ConfigError(
                f"a feature map of a batch has a single cell, which the model cannot normalise: the batch is "
                f"{len(batch.images)} x {height} x {width} pixels; expected larger images (data.image_size) or more "
                "of them (train.batch_size)"
            ) from error
        if placeholder:
            output = output.without_queries()
        losses: dict[str, Tensor] = self.criterion(output, targets, *counts)
        return losses


def object_counts(micro_batches: Sequence[Batch]) -> list[int] | None:
    """Return the number of objects of each image of an update; None if a single micro-batch has all of them."""
    if len(micro_batches) == 1:
        return None
    return [len(target.labels) for batch in micro_batches if batch.image_ids for target in batch.targets]
