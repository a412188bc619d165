"""Numbers that cannot be: in targets, in weights, in predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate as accumulated
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from querybox import Detector, ImageBatch, Target
from querybox.errors import QueryboxError
from querybox.training.loss import DetectionLoss
from torture.case import Case, require
from torture.data_sets import MODEL, tiny_detector

ACCUMULATED = ("detr_r50", "conditional_detr_r50", "deformable_detr_r50_two_stage")
"""Kinds without denoising queries, whose noise differs in parts."""
BATCHES = 20, 2
"""Random batches of each kind, in the long and in the short form."""
PIXELS = torch.zeros(3, 64, 64, dtype=torch.uint8)


def refused(action: Callable[[], object]) -> bool:
    """Return whether an action raises an error of the library."""
    try:
        action()
    except QueryboxError:
        return True
    return False


def targets(_: Path, __: bool) -> str:
    """Compute losses with labels and boxes that no object can have."""
    detector = tiny_detector()
    batch = ImageBatch.from_images([PIXELS])
    output, classes = detector(batch), len(detector.categories)
    box = [0.5, 0.5, 0.2, 0.2]
    faults = [(box, -1), (box, classes), (box, 10**9), ([320.0, 240, 64, 64], 0), ([-0.5, 0.5, 0.2, 0.2], 0)]
    faults += [([value, 0.5, 0.2, 0.2], 0) for value in (math.nan, math.inf, -math.inf)]

    def losses(corners: list[float], label: int) -> object:
        target = Target(boxes=torch.tensor([corners]), labels=torch.tensor([label]))
        return detector.criterion()(output, [target])

    for corners, label in faults:
        require(refused(lambda: losses(corners, label)), f"label {label}, box {corners}: losses")  # noqa: B023 - called at once
    require(not refused(lambda: losses(box, classes - 1)), "a sound target was refused")
    return f"{len(faults)} refused before the losses"


def weights(folder: Path, long: bool) -> str:
    """Save, predict and trace with one NaN or infinite number in each tensor of a detector."""
    detector, path = tiny_detector().eval(), folder / "model.safetensors"
    detector.save(path)
    before, count = path.read_bytes(), 0
    tensors = [tensor for tensor in detector.state_dict().values() if tensor.is_floating_point()]
    for tensor in tensors[:: 1 if long else 20]:
        for value in (math.nan, math.inf):
            flat = tensor.view(-1)
            sound, flat[0] = flat[0].clone(), value
            require(refused(lambda: detector.save(path)), "saved")
            answered(detector)
            flat[0], count = sound, count + 1
    require(path.read_bytes() == before, "the older file was changed")
    detector.save(path)
    return f"{count} not saved, no prediction with NaN"


def answered(detector: Detector) -> None:
    """Require an error or detections that are finite: ReLU and batch norms can absorb a number."""
    try:
        (found,) = detector.predict(PIXELS, threshold=0.0)
    except QueryboxError:
        return
    require(bool(found.scores.isfinite().all() and found.boxes_xyxy.isfinite().all()), "NaN answers")


def accumulate(__: Path, long: bool) -> str:
    """Compute the gradient of random batches as a whole and in random parts, in which objects are few or none."""
    random, worst = Random(0), 0.0
    kinds = ACCUMULATED if long else ACCUMULATED[:1]
    for recipe in kinds:
        torch.manual_seed(0)
        detector = (
            Detector.from_recipe(recipe, num_classes=2, **{**MODEL, "width": 32, "dropout": 0.0})
            .double()
            .eval()
        )
        loss = DetectionLoss(detector, detector.criterion())
        for _ in range(BATCHES[not long]):
            counts = [random.choice((0, 0, 1, 2, 20)) for _ in range(4)]
            whole = gradient(loss, counts, [len(counts)])
            parts = gradient(loss, counts, random.choice(([1, 1, 1, 1], [3, 1], [2, 2], [1, 2, 1])))
            difference = float((parts - whole).norm() / whole.norm())
            require(difference < 1e-6, f"{recipe}, {counts} objects: gradients differ by {difference:.1e}")
            worst = max(worst, difference)
    return (
        f"{len(kinds) * BATCHES[not long]} batches of {len(kinds)} kinds: the same gradient up to {worst:.1e}"
    )


def gradient(loss: DetectionLoss, counts: list[int], parts: list[int]) -> Tensor:
    """Return the gradient of all parameters for images with these numbers of objects, in parts of these sizes."""
    loss.zero_grad()
    torch.manual_seed(1)
    images = torch.randn(len(counts), 3, 96, 96, dtype=torch.float64)
    targets = [
        Target(boxes=torch.rand(count, 4) * 0.3 + 0.2, labels=torch.randint(0, 2, (count,)))
        for count in counts
    ]
    for first, size in zip(accumulated(parts, initial=0), parts, strict=False):
        part = slice(first, first + size)
        mask, sizes = torch.zeros(size, 96, 96, dtype=torch.bool), torch.tensor([[96, 96]] * size)
        batch = ImageBatch(images=images[part], padding_mask=mask, sizes=sizes)
        sum(loss(batch, targets[part], object_counts=counts).values()).backward()
    return torch.cat([each.grad.flatten() for each in loss.parameters() if each.grad is not None])


CASES = [
    Case(
        name="accumulated gradients",
        required="those of the whole batch, however it is divided",
        run=accumulate,
    ),
    Case(name="impossible labels and boxes", required="refused before the losses", run=targets),
    Case(name="NaN and infinite weights", required="not saved; an error, or finite predictions", run=weights),
]
