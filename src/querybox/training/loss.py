"""The detector and its criterion as one module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
        self, batch: ImageBatch, targets: Sequence[Target], *, placeholder: bool = False
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name. Those of a `placeholder` batch are 0, and so are its gradients."""
        output = self.detector(batch, targets)
        losses: dict[str, Tensor] = self.criterion(
            output.without_queries() if placeholder else output, targets
        )
        return losses
