"""What all rows share: the options of the run, one detector, real images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from querybox.detector import Detector
from querybox.pixels import as_pixels, pad
from querybox.structures import ImageBatch, Preprocessing, Target

EXAMPLE = Path(__file__).parent.parent / "examples" / "blood_cells"
NUM_CLASSES = 91
"""Number of classes, as in the published COCO models; with "no object" the class head has 92 rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Options of a run."""

    facebook: Path | None = None
    """A checkout of facebookresearch/detr."""
    ultralytics: Path | None = None
    """A Python interpreter that has ultralytics."""
    quick: bool = False
    """Use small inputs and few samples, only to check that all rows work."""
    folder: Path
    """Folder for exported models."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the input size to use: the given one, or a smaller one if `quick`."""
        return (height // 8, width // 8) if self.quick else (height, width)

    def count(self, full: int) -> int:
        """Return the number to use: the given one, or a smaller one if `quick`."""
        return max(2, full // 50) if self.quick else full

    def seconds(self, full: float) -> float:
        """Return the time for samples: the given one, or 0 if `quick`."""
        return 0 if self.quick else full


@cache
def detector() -> Detector:
    """Return DETR R50 with random weights whose outputs depend on the image and the query, as in a trained model.

    With plain random weights, activations grow from block to block and attention averages everything. Therefore batch
    norms and the input projection get the statistics of real images, and attention logits are scaled up.
    """
    torch.manual_seed(0)
    model = Detector.from_recipe("detr_r50", num_classes=NUM_CLASSES)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    with torch.no_grad():
        (features,) = model.neck(model.backbone(images(2, (480, 640)).images))
        spread, mean = torch.std_mean(features, dim=(0, 2, 3))
        for name, parameter in model.named_parameters():
            if name == "neck.projections.0.weight":
                parameter.div_(spread[:, None, None, None])
            elif name == "neck.projections.0.bias":
                parameter.sub_(mean).div_(spread)
            elif name.endswith(("query.weight", "key.weight")):
                parameter.mul_(2)
    return model.eval()


def pixels(count: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the first images of the example, uint8 [B, 3, H, W], at one size (height, width), and their sizes."""
    paths = sorted((EXAMPLE / "images").glob("*.jpg"))[:count]
    return pad([as_pixels(Image.open(path).convert("RGB").resize(size[::-1])) for path in paths])


def images(count: int, size: tuple[int, int]) -> ImageBatch:
    """Return the same images as a normalised batch."""
    return ImageBatch.from_pixels(*pixels(count, size), Preprocessing())


def targets(batch: int, objects: int, num_classes: int = NUM_CLASSES) -> list[Target]:
    """Return random targets for each image, with boxes that lie within it."""
    random = torch.Generator().manual_seed(0)
    result = []
    for _ in range(batch):
        size = 0.05 + 0.3 * torch.rand(objects, 2, generator=random)
        centre = size / 2 + (1 - size) * torch.rand(objects, 2, generator=random)
        labels = torch.randint(num_classes, (objects,), generator=random)
        result.append(Target(boxes=torch.cat([centre, size], dim=1), labels=labels))
    return result
