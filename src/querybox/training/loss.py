"""The detector and its criterion as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from querybox.data import Batch
from querybox.modules.detector import DetectionTransformer
from querybox.structures import ImageBatch, Target


class DetectionLoss(nn.Module):
    """Computes the losses of a detector.

    accelerate wraps this module, not the detector, for mixed precision and distributed training, so that the detector
    itself can be evaluated and saved.
    """

    def __init__(self, detector: DetectionTransformer, criterion: nn.Module) -> None:
        super().__init__()
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
        """
        part = (
            () if object_counts is None else (object_counts,)
        )  # for detectors with a forward method of their own
        output = self.detector(batch, targets, *part)
        losses: dict[str, Tensor] = self.criterion(
            output.without_queries() if placeholder else output, targets, *part
        )
        return losses


def object_counts(micro_batches: Sequence[Batch]) -> list[int] | None:
    """Return the number of objects of each image of an update; None if a single micro-batch has all of them."""
    if len(micro_batches) == 1:
        return None
    return [len(target.labels) for batch in micro_batches if batch.image_ids for target in batch.targets]
